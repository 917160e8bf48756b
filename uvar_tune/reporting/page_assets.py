"""CSS and JavaScript of the page, inline so that it opens without a network."""

CSS = """
:root { --ink: #24292f; --soft: #57606a; --line: #d8dee4; --best: #0b3d91; --base: #c2410c; --wash: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 2rem 1.5rem 4rem; color: var(--ink); background: #fff;
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
.note.warn { border-color: #bf8700; background: #fff8e6; }
.note.good { border-color: var(--best); background: #eef4ff; } .note.bad { border-color: #a40e26; background: #fff0f0; }
img { max-width: 100%; height: auto; }
figure { margin: 0; } figure.narrow { max-width: 54rem; }
figcaption { color: var(--soft); font-size: .87rem; margin-top: .3rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.4rem; }
.pair img { width: 100%; image-rendering: pixelated; border: 1px solid var(--line); }
.scroll { overflow: auto; max-height: 34rem; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.scroll table { width: 100%; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #eaeef2; }
th.word, td.word { text-align: left; }
.scroll th { position: sticky; top: 0; background: var(--wash); }
.sortable th { cursor: pointer; user-select: none; } .sortable th:hover, .sortable th:focus { background: #e7ecf0; }
th[aria-sort=ascending]::after { content: " ▲"; } th[aria-sort=descending]::after { content: " ▼"; }
tr.violated td { color: #8c959f; } tr.worse td { color: #a40e26; background: #fff0f0; }
tr.better td { color: var(--best); background: #eef4ff; } .verdicts th, .verdicts td { padding: .3rem .5rem; }
.wide { overflow-x: auto; margin-top: .7rem; }
.tables { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.scroll.short { max-height: 20rem; margin-top: .7rem; } .scroll .wide { overflow: visible; margin: 0; }
.factorial td:not(.word) { text-align: center; padding: .6rem 1.4rem; } .factorial th { text-align: center; }
.factorial b { font-size: 1.15rem; } .factorial span { color: var(--soft); }
tr.best td { font-weight: 600; color: var(--best); background: #eef4ff; }
tr.base td { color: var(--base); background: #fff4ed; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--wash); padding: .8rem 1rem; overflow: auto; font-size: .82rem; border-radius: 8px; }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  const sort = (head) => {
    const up = head.getAttribute('aria-sort') !== 'ascending', at = head.cellIndex;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = (row) => row.cells[at].dataset.v ?? '';
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (x === '' || y === '') return (x === '') - (y === '');
      const d = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? d : -d;
    };
    body.append(...[...body.rows].sort(order));
  };
  for (const head of table.tHead.rows[0].cells) {
    head.tabIndex = 0;
    head.addEventListener('click', () => sort(head));
    head.addEventListener('keydown', (event) => { if (event.key === 'Enter') sort(head); });
  }
}
"""
