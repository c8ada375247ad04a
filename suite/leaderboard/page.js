'use strict';

const GREY = '#6e7781', COLORS = ['#1f5fa8', '#b3450b', '#4f772d', '#7b3f8c', '#00747a'];
const $ = (query, node = document) => node.querySelector(query);
const all = (query, node = document) => [...node.querySelectorAll(query)];
const sections = all('section.board');
const chosen = () => sections.find(section => section.dataset.board === $('#group').value);

// Tables

function value(row, column) {
  const text = row.cells[column].dataset.value;
  return text === undefined || text === '' ? null : isNaN(text) ? text : Number(text);
}

function compare(a, b) {
  return typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b));
}

function sort(table, column, ascending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map(row => [value(row, column), row]);
  // What has no value stays last, either way.
  keyed.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
    : ascending ? compare(a, b) : compare(b, a));
  body.append(...keyed.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    if (place === column) head.setAttribute('aria-sort', ascending ? 'ascending' : 'descending');
    else head.removeAttribute('aria-sort');
  });
}

for (const button of all('table.sortable thead button')) {
  button.addEventListener('click', () => {
    const head = button.closest('th');
    // A first click shows the best first: the highest score, the fewest parameters.
    const first = head.dataset.metric || button.textContent === 'images/s' ? 'descending' : 'ascending';
    const now = head.getAttribute('aria-sort');
    const next = now ? (now === 'ascending' ? 'descending' : 'ascending') : first;
    sort(head.closest('table'), head.cellIndex, next === 'ascending');
  });
}

function matches(row, words, family) {
  const text = row.textContent.toLowerCase();
  return (!family || row.dataset.family === family) && words.every(word => text.includes(word));
}

function filter() {
  const words = $('#filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  const family = $('#family').value;
  const rows = all('tbody tr', chosen());
  for (const row of rows) row.hidden = !matches(row, words, family);
  const shown = rows.filter(row => !row.hidden);
  $('#count').textContent = `${shown.length} of ${rows.length} rows`;
  const board = DATA[chosen().dataset.board];
  const beside = all('#published tbody tr').filter(row => {
    const belongs = !board || row.dataset.key === board.key.join('|');
    row.hidden = !(belongs && matches(row, words, family));
    return !row.hidden;
  });
  $('#published .nothing').hidden = beside.length > 0;
  $('#published .scroll').hidden = beside.length === 0;
  // Columns that are empty in all shown rows go.
  const table = $('#published table');
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const empty = beside.every(row => row.cells[column].textContent === '-');
    head.hidden = empty;
    for (const row of table.tBodies[0].rows) row.cells[column].hidden = empty;
  });
  return shown;
}

function rank(section, ranks) {
  for (const row of all('tbody tr', section)) {
    const place = ranks[row.dataset.row];
    row.cells[0].textContent = place ?? '-';
    if (place === null) delete row.cells[0].dataset.value;
    else row.cells[0].dataset.value = place;
  }
  sort($('table', section), 0, true);
}

// Plots

const score = ([mean, std, n]) => mean.toFixed(2) + (std === null ? '' : ` ± ${std.toFixed(2)}`)
  + (n > 1 ? ` (${n} seeds)` : '');
const escape = text => text.replace(/&/g, '&amp;').replace(/</g, '&lt;');

function measured(board, metric, axis, shown, several) {
  const { rows } = board.plots, { scores, fronts, ranks, name } = board.plots.metrics[metric];
  const title = board.plots.axes[axis];
  const places = rows.map((_, place) => place).filter(
    place => scores[place] && rows[place].values[axis] !== null);
  const on = new Map();
  for (const place of places) {
    const condition = rows[place].conditions[axis];
    on.set(condition, [...(on.get(condition) ?? []), place]);
  }
  // The most frequent machine has the main colour.
  return [...on].sort(([, a], [, b]) => b.length - a.length).flatMap(([condition, mine], number) => {
    const color = COLORS[number % COLORS.length];
    const front = Object.fromEntries(fronts[axis])[condition];
    const at = list => ({
      x: list.map(place => rows[place].values[axis]), y: list.map(place => scores[place][0]) });
    return [
      { ...at(front), mode: 'lines', line: { color, width: 1.5 }, hoverinfo: 'skip', showlegend: false },
      { ...at(mine), mode: 'markers+text', name: condition || 'measured', showlegend: several,
        marker: { color, size: 9, line: { color, width: 2 },
          symbol: mine.map(place => rows[place].ours ? 'circle-open' : 'circle'),
          opacity: mine.map(place => shown.has(place) ? 1 : 0.15) },
        // A null would be drawn as a bar of length 0.
        error_y: { array: mine.map(place => (shown.has(place) && scores[place][1]) || NaN), color,
          thickness: 1, width: 2 },
        text: mine.map(place => front.includes(place) && shown.has(place) ? ranks[place] : ''),
        textposition: title.startsWith('images') ? 'top right' : 'top left',
        textfont: { size: 11, color: '#1b1f24' }, cliponaxis: false,
        hovertext: mine.map(place => `<b>${escape(rows[place].name)}</b>`
          + (rows[place].ours ? ' (our reconstruction)' : '') + `<br>${name} ${score(scores[place])}`
          + `<br>${title}: ${rows[place].values[axis].toPrecision(4)}`
          + (condition ? `<br>${escape(condition)}` : '')),
        hoverinfo: 'text' }];
  });
}

function published(board, metric, axis) {
  const points = board.plots.metrics[metric].published.filter(point => point.values[axis] !== null);
  return points.length === 0 ? [] : [{
    x: points.map(point => point.values[axis]), y: points.map(point => point.score),
    mode: 'markers', name: 'published', showlegend: false,
    marker: { color: GREY, size: 7, symbol: 'diamond-open' },
    hovertext: points.map(point => `<b>${escape(point.name)}</b> (published)`
      + `<br>${board.plots.metrics[metric].name} ${point.score}`
      + `<br>${board.plots.axes[axis]}: ${point.values[axis]}` + (axis ? '' : ` at ${point.size}`)
      + `<br>pre-training ${point.pretraining}<br>${escape(point.source)}`),
    hoverinfo: 'text' }];
}

function ticks(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return high > 8 * low ? { type: 'log', dtick: high > 200 * low ? 1 : 'D2' } : { type: 'linear' };
}

function draw(section, board, metric, shown) {
  const toggle = $('.show-published', section);
  all('.plot', section).forEach((plot, axis) => {
    const conditions = new Set(board.plots.rows.filter(row => row.values[axis] !== null)
      .map(row => row.conditions[axis]));
    const several = conditions.size > 1;
    const traces = [...(toggle && toggle.checked ? published(board, metric, axis) : []),
      ...measured(board, metric, axis, shown, several)];
    const title = board.plots.axes[axis], name = board.plots.metrics[metric].name;
    const at = several ? '' : [...conditions].join();
    plot.setAttribute('role', 'img');
    plot.setAttribute('aria-label', `${name} against ${title}; the table below has the numbers`);
    const empty = traces.length === 0;
    Plotly.react(plot, traces, {
      margin: { l: 20, r: 16, t: 24, b: 64 }, hovermode: 'closest', paper_bgcolor: '#fff',
      plot_bgcolor: '#fff', font: { family: 'system-ui, sans-serif', size: 12, color: '#1b1f24' },
      hoverlabel: { bgcolor: '#fff', bordercolor: '#1b1f24', align: 'left',
        font: { color: '#1b1f24', size: 12 } },
      legend: { orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0, font: { size: 11 } },
      xaxis: { title: { text: `${title}<br><span style="color:#57606a">${escape(at)}</span>`, standoff: 6,
        font: { size: 12 } },
        gridcolor: '#eaeef2', zeroline: false, linecolor: '#afb8c1', ticks: 'outside',
        tickcolor: '#afb8c1', ...ticks(traces.flatMap(trace => trace.x)) },
      yaxis: { title: { text: `${name}, %` + (board.mini ? ' (MINI)' : ''), standoff: 8,
        font: { size: 12 } }, automargin: true, gridcolor: '#eaeef2', zeroline: false,
        linecolor: '#afb8c1' },
      annotations: empty ? [{ text: 'not measured', showarrow: false, xref: 'paper', yref: 'paper',
        x: 0.5, y: 0.5, font: { color: GREY } }] : [],
    }, { displayModeBar: false, responsive: true });
  });
}

// What is chosen

function update() {
  const section = chosen(), shown = filter(), board = DATA[section.dataset.board];
  if (!board) return;
  const metric = $('.metric', section).value;
  for (const line of all('.fronts', section)) line.hidden = line.dataset.metric !== metric;
  draw(section, board, metric, new Set(shown.map(row => Number(row.dataset.row))));
}

function choose() {
  for (const section of sections) section.hidden = section !== chosen();
  const families = [...new Set(all('tbody tr', chosen()).map(row => row.dataset.family))].sort();
  const before = $('#family').value;
  $('#family').replaceChildren(new Option('all', ''), ...families.map(family => new Option(family)));
  $('#family').value = families.includes(before) ? before : '';
  update();
}

for (const section of sections) {
  all('tbody tr', section).forEach((row, place) => { row.dataset.row = place; });
  const board = DATA[section.dataset.board], metric = $('.metric', section);
  if (!board) continue;
  rank(section, board.plots.metrics[metric.value].ranks);
  metric.addEventListener('change', () => {
    rank(section, board.plots.metrics[metric.value].ranks);
    update();
  });
  $('.show-published', section)?.addEventListener('change', update);
}
$('#group').addEventListener('change', choose);
$('#family').addEventListener('change', update);
$('#filter').addEventListener('input', update);
choose();
