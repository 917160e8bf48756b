"""CSS of the page, inline so that it opens without a network; light, dark and for print."""

CSS = """
:root { --ink: #24292f; --soft: #57606a; --line: #d8dee4; --best: #0b3d91; --base: #c2410c; --wash: #f6f8fa;
        --page: #fff; --row: #eaeef2; --bad: #a40e26; --bad-wash: #fff0f0; --good-wash: #eef4ff; --base-wash: #fff4ed;
        --warn: #bf8700; --warn-wash: #fff8e6; --faint: #6e7781; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b3; --line: #30363d; --best: #79b8ff; --base: #ffa657; --wash: #161b22;
          --page: #0d1117; --row: #21262d; --bad: #ff8f8f; --bad-wash: #351418; --good-wash: #10243e;
          --base-wash: #2e1d0e; --warn: #d29922; --warn-wash: #2b220c; --faint: #8b949e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.5rem 4rem; color: var(--ink); background: var(--page);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { margin: .4rem 0; max-width: 60rem; } .soft { color: var(--soft); }
.question { font-size: 1.1rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .6rem 1rem; min-width: 10.5rem; }
.card b { display: block; font-size: 1.45rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card.best b { color: var(--best); } .card.base b { color: var(--base); }
.card span { color: var(--soft); font-size: .87rem; }
.note { border-left: 4px solid var(--soft); background: var(--wash); padding: .5rem .9rem; margin: .7rem 0; }
.note.warn { border-color: var(--warn); background: var(--warn-wash); }
.note.good { border-color: var(--best); background: var(--good-wash); }
.note.bad { border-color: var(--bad); background: var(--bad-wash); }
img { max-width: 100%; height: auto; }
figure { margin: 0; } figure.narrow { max-width: 54rem; }
figcaption { color: var(--soft); font-size: .87rem; margin-top: .3rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.4rem; }
.pair img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
.scroll { overflow: auto; max-height: 34rem; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll table { width: 100%; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--row); }
th.word, td.word { text-align: left; }
.scroll th { position: sticky; top: 0; background: var(--wash); }
.sortable th { cursor: pointer; user-select: none; } .sortable th:hover, .sortable th:focus { background: var(--row); }
th[aria-sort=ascending]::after { content: " ▲"; } th[aria-sort=descending]::after { content: " ▼"; }
tr.violated td { color: var(--faint); } tr.worse td { color: var(--bad); background: var(--bad-wash); }
tr.better td { color: var(--best); background: var(--good-wash); } .verdicts th, .verdicts td { padding: .3rem .5rem; }
.wide { overflow-x: auto; margin-top: .7rem; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.scroll.short { max-height: 20rem; margin-top: .7rem; } .scroll .wide { overflow: visible; margin: 0; }
.factorial td:not(.word) { text-align: center; padding: .6rem 1.4rem; } .factorial th { text-align: center; }
.factorial b { font-size: 1.15rem; } .factorial span { color: var(--soft); }
tr.best td { font-weight: 600; color: var(--best); background: var(--good-wash); }
tr.base td { color: var(--base); background: var(--base-wash); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--wash); padding: .8rem 1rem; overflow: auto; font-size: .82rem; border-radius: 8px; }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } }
.chart { display: none; } .live .chart { display: block; } .live .still { display: none; }
.live .imaged .still { display: block; } .live .chart[hidden] { display: none; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem .8rem; align-items: center; margin: .5rem 0; font-size: .9rem; }
.tools input[type=search] { width: 19rem; max-width: 100%; }
input, button, summary { font: inherit; color: inherit; }
button, .tools input[type=search] { border: 1px solid var(--soft); border-radius: 6px; padding: .2rem .6rem;
  background: var(--page); }
button:hover { background: var(--row); } :focus-visible { outline: 3px solid var(--best); outline-offset: 1px; }
button.open { border: 0; padding: 0 .2rem; background: none; color: inherit; text-decoration: underline; }
.columns { position: relative; } .columns > div { position: absolute; z-index: 3; background: var(--page);
  border: 1px solid var(--line); border-radius: 8px; padding: .5rem .8rem; columns: 2; min-width: 20rem; }
.columns label { display: block; } summary { cursor: pointer; }
#tip { position: fixed; z-index: 9; pointer-events: none; max-width: 17rem; padding: .5rem .7rem; border-radius: 8px;
  background: var(--page); border: 1px solid var(--soft); font-size: .84rem; box-shadow: 0 4px 14px #0003; }
#tip img { display: block; width: 100%; margin-top: .4rem; image-rendering: pixelated; }
dialog { color: var(--ink); background: var(--page); border: 1px solid var(--line); border-radius: 10px;
  width: min(60rem, 94vw); padding: 1.2rem 1.5rem; } dialog h2 { margin-top: 0; }
dialog::backdrop { background: #0006; } dialog form { float: right; }
dialog .two { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
@media (max-width: 760px) { dialog .two { grid-template-columns: 1fr; } body { padding: 1rem .8rem 3rem; } }
@media print {
  :root { --ink: #000; --soft: #444; --page: #fff; --wash: #fff; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 11px; } section { break-inside: avoid-page; }
  .live .chart, .tools, #tip, dialog { display: none; } .live .still { display: block; }
  .scroll { max-height: none; overflow: visible; border: 0; } table { font-size: 8px; } th, td { padding: .1rem .3rem; }
  .scroll th { position: static; } #trials tbody tr:nth-child(n+31) { display: none; } h2 { break-after: avoid; }
}
"""
