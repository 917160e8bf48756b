'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const make = (tag, fields = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), fields);
    node.append(...children);
    return node;
  };
  const table = document.getElementById('trials'), body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells], rows = [...body.rows];
  const names = heads.map((head) => head.textContent);
  const number = (row) => Number(row.dataset.trial);
  let brushed = null;

  // Sorting: a button in each head; unrounded values, rows without a value last.
  const sort = (head) => {
    const up = head.getAttribute('aria-sort') !== 'ascending', at = head.cellIndex;
    for (const other of heads) other.removeAttribute('aria-sort');
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
  for (const head of heads) {
    head.tabIndex = 0;
    head.addEventListener('click', () => sort(head));
    head.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); sort(head); }
    });
  }

  // Filtering: words anywhere in a row, comparisons such as "fid<5", and the brush.
  const search = make('input', {type: 'search', placeholder: 'Search: normal  fid<5  kind=search'});
  search.setAttribute('aria-label', 'Search the trials: words, or comparisons such as fid<5');
  const count = make('span', {className: 'soft'});
  count.setAttribute('role', 'status');
  const clear = make('button', {type: 'button', textContent: 'Clear selection', hidden: true});
  const wanted = (text) => text.trim().toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const parts = word.match(/^(.+?)(<=|>=|<|>|=)(.+)$/);
    const at = parts ? names.findIndex((name) => name.toLowerCase().replace(/\s+/g, '') === parts[1]) : -1;
    if (at < 0) return (row) => row.textContent.toLowerCase().includes(word);
    const [, , sign, right] = parts;
    return (row) => {
      const left = row.cells[at].dataset.v ?? '';
      if (left === '') return false;
      if (sign === '=') return left.toLowerCase() === right || Number(left) === Number(right);
      const x = Number(left), y = Number(right);
      return sign === '<' ? x < y : sign === '>' ? x > y : sign === '<=' ? x <= y : x >= y;
    };
  });
  const filter = () => {
    const tests = wanted(search.value);
    let left = 0;
    for (const row of rows) {
      row.hidden = (brushed !== null && !brushed.has(number(row))) || !tests.every((test) => test(row));
      left += !row.hidden;
    }
    count.textContent = `${left.toLocaleString('en')} of ${rows.length.toLocaleString('en')} trials`;
    clear.hidden = brushed === null && search.value === '';
  };
  search.addEventListener('input', filter);

  const boxes = make('div');
  names.forEach((name, at) => {
    const box = make('input', {type: 'checkbox', checked: true});
    box.addEventListener('change', () => {
      for (const row of table.rows) row.cells[at].hidden = !box.checked;
    });
    boxes.append(make('label', {}, box, ` ${name}`));
  });
  const chooser = make('details', {className: 'columns'}, make('summary', {textContent: 'Columns'}), boxes);
  chooser.addEventListener('keydown', (event) => { if (event.key === 'Escape') chooser.open = false; });

  const quoted = (text) => {
    const safe = /^[=+@\t\r]|^-(?![\d.])/.test(text) ? `'${text}` : text; // no formula in a spreadsheet
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const download = make('button', {type: 'button', textContent: 'Download CSV'});
  download.addEventListener('click', () => {
    const shown = names.map((_, at) => at).filter((at) => !heads[at].hidden);
    const lines = [shown.map((at) => quoted(heads[at].title || names[at]))];
    for (const row of body.rows) if (!row.hidden) lines.push(shown.map((at) => quoted(row.cells[at].dataset.v ?? '')));
    const url = URL.createObjectURL(new Blob([lines.map((line) => line.join()).join('\n') + '\n'], {type: 'text/csv'}));
    make('a', {href: url, download: `${data.study}.csv`}).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  table.parentElement.before(make('div', {className: 'tools'}, search, chooser, download, clear, count));

  // A trial: a card on hover, a dialog on click.
  const tip = make('div', {id: 'tip', hidden: true});
  document.body.append(tip);
  const showTip = (trial, x, y) => {
    const found = data.trials[trial];
    if (!found) return;
    const settings = Object.entries(found.settings).map(([name, value]) => `${name} ${value}`).join(', ');
    tip.replaceChildren(make('b', {textContent: `trial ${trial}: ${found.value}`}), make('div', {textContent: settings}));
    if (found.samples) tip.append(make('img', {src: found.samples, alt: ''}));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 16, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - box.height - 8))}px`;
  };
  const hideTip = () => { tip.hidden = true; };
  const dialog = make('dialog');
  dialog.setAttribute('aria-labelledby', 'trial-name');
  document.body.append(dialog);
  const quote = (text) => (/^[\w.\/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const openTrial = (trial) => {
    const row = rows.find((one) => number(one) === trial), found = data.trials[trial] ?? {};
    const list = make('dl');
    names.forEach((name, at) => {
      const value = row.cells[at].textContent;
      if (value !== '–') list.append(make('dt', {textContent: name}), make('dd', {textContent: value}));
    });
    const right = make('div');
    if (found.samples) right.append(make('img', {src: found.samples, alt: `samples of trial ${trial}`}));
    const plots = make('div');
    right.append(plots);
    const study = quote(data.study);
    const commands = `uvar-tune show ${study} --trial ${trial}\n` +
      `uvar-tune export --study ${study} --trial ${trial} --unconfirmed   # prints the path of FILE\n` +
      'uvar-tune train FILE --replay   # repeats the trial and compares its numbers\n' +
      'uvar-tune train FILE            # a final run';
    dialog.replaceChildren(
      make('form', {method: 'dialog'}, make('button', {textContent: 'Close'})),
      make('h2', {id: 'trial-name', textContent: `Trial ${trial}${found.value ? `: ${found.value}` : ''}`}),
      make('div', {className: 'two'}, list, right),
      make('h3', {textContent: 'Run it again'}), make('pre', {tabIndex: 0, textContent: commands}));
    hideTip();
    dialog.showModal();
    if (!window.Plotly) return;
    const draw = (points, title, below) => {
      const place = make('div');
      plots.append(place);
      const layout = {height: 210, margin: {l: 50, r: 10, t: 30, b: 40}, title: {text: title, font: {size: 13}},
        xaxis: {title: {text: below}}, showlegend: false};
      Plotly.newPlot(place, [{x: points[0], y: points[1], mode: 'lines+markers', marker: {size: 4}}],
        themed(layout), options);
    };
    if (found.curve) draw(found.curve, 'loss', 'images seen');
    if (found.cfg) draw(found.cfg, found.value.split(' ')[0], 'CFG scale');
  };
  const at = names.indexOf('trial');
  for (const row of rows) {
    const trial = number(row), button = make('button', {type: 'button', className: 'open', textContent: row.cells[at].textContent});
    button.setAttribute('aria-label', `Details of trial ${trial}`);
    button.addEventListener('click', () => openTrial(trial));
    row.cells[at].replaceChildren(button);
    row.addEventListener('mousemove', (event) => showTip(trial, event.clientX, event.clientY));
    row.addEventListener('mouseleave', hideTip);
  }
  filter();

  // Charts: Plotly from this file, in the colours of the page.
  const options = {displaylogo: false, responsive: true, modeBarButtonsToRemove: ['select2d', 'lasso2d']};
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const themed = (layout) => {
    const own = {...inColours(layout), paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      font: {...layout.font, color: colour('--ink')}};
    for (const key of new Set([...Object.keys(own), 'xaxis', 'yaxis'])) {
      if (/^[xy]axis\d*$/.test(key)) own[key] = {...own[key], gridcolor: colour('--row'), zeroline: false, automargin: true,
        linecolor: colour('--faint'), showline: true};
    }
    return own;
  };
  const recoloured = (trace) => {
    if (trace.type === 'parcoords') {
      const dark = matchMedia('(prefers-color-scheme: dark)').matches, scale = trace.line.colorscale;
      const reversed = scale.map(([share], i) => [1 - share, scale[i][1]]).reverse(); // the best stands out
      return {...trace, line: {...trace.line, colorscale: dark ? reversed : scale}, labelfont: {color: colour('--ink'), size: 14}, tickfont: {color: colour('--ink')},
        rangefont: {color: 'rgba(0,0,0,0)'}, unselected: {line: {color: colour('--faint'), opacity: 0.08}}};
    }
    return inColours(trace);
  };
  const inColours = (part) => (
    JSON.parse(JSON.stringify(part).replaceAll('#0b3d91', colour('--best')).replaceAll('#c2410c', colour('--base'))
      .replaceAll('#a40e26', colour('--bad')).replaceAll('#8c959f', colour('--faint'))));
  const brush = (place) => {
    const chart = place.data[0], held = chart.dimensions.filter((one) => one.constraintrange);
    const ranges = held.map((one) => (Array.isArray(one.constraintrange[0]) ? one.constraintrange : [one.constraintrange]));
    const inside = (i) => held.every((one, k) => ranges[k].some(([low, high]) => one.values[i] >= low && one.values[i] <= high));
    brushed = held.length ? new Set([...chart.customdata].filter((_, i) => inside(i))) : null;
    filter();
  };
  const drawAll = async () => {
    for (const [name, chart] of Object.entries(data.charts)) {
      const place = document.getElementById(`chart-${name}`);
      if (!place) continue;
      if (chart.data[0].type === 'parcoords' && !document.createElement('canvas').getContext('webgl')) {
        place.parentElement.classList.add('imaged'); // no WebGL: the image of the same chart
        place.hidden = true;
        continue;
      }
      await Plotly.newPlot(place, chart.data.map(recoloured), themed(chart.layout), options);
      place.on('plotly_restyle', () => { if (place.data[0].type === 'parcoords') brush(place); });
      place.on('plotly_hover', (event) => {
        if (event.points[0].customdata !== undefined) showTip(event.points[0].customdata, event.event.clientX, event.event.clientY);
      });
      place.on('plotly_unhover', hideTip);
      place.on('plotly_click', (event) => {
        const trial = event.points[0].customdata;
        if (rows.some((row) => number(row) === trial)) openTrial(trial);
      });
      for (const link of place.querySelectorAll('.modebar-btn')) link.setAttribute('aria-label', link.dataset.title ?? 'tool');
    }
    document.documentElement.dataset.ready = 'yes';
  };
  clear.addEventListener('click', () => {
    search.value = '';
    brushed = null;
    const place = document.getElementById('chart-png-0');
    if (window.Plotly && place && place.data) {
      place.data[0].dimensions.forEach((one) => { delete one.constraintrange; });
      Plotly.react(place, place.data, place.layout, options);
    }
    filter();
    search.focus();
  });
  const start = async () => {
    const packed = Uint8Array.from(atob(document.getElementById('library').textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
    const code = await new Response(stream).text();
    document.head.append(make('script', {textContent: code}));
    document.body.classList.add('live');
    await drawAll();
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
  };
  start().catch((error) => { // an old browser, or none of the library: the images stay
    document.body.classList.remove('live');
    document.documentElement.dataset.ready = 'no';
    console.warn(`charts are not interactive here: ${error}`);
  });
})();
