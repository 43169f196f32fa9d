/**
 * Draws a bar chart as SVG: one panel for each case, one bar for each server. All colours come from the style below, which
 * follows the reader's light or dark mode, also in an <img>.
 */
const STYLE = `
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 13px }
  .head { font-weight: 600; font-size: 16px }
  .value, .sub { fill: #59636e }
  .bar { fill: #afb8c1 } .own { fill: #0969da } .floor { fill: #6e7781 }
  .limit { stroke: #cf222e; stroke-dasharray: 4 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .value, .sub { fill: #9da7b3 }
    .bar { fill: #4b535d } .own { fill: #4493f8 } .floor { fill: #7d8590 }
    .limit { stroke: #ff7b72 }
  }`
const COLUMN = 560
const LABEL = 150
const VALUE = 190
const BAR = 14
const STEP = 20
const GAP = 26

const inXml = text =>
  String(text).replace(
    /[&<>"]/g,
    c => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[c],
  )

/** panels: [{ title, bars: [{ label, value, text, kind }], limit? }]; kind is own, floor or bar. */
export function chart({ title, subtitle, panels }) {
  const columns = panels.length > 2 ? 2 : 1
  const heights = Array(columns).fill(64)
  const parts = []
  for (const panel of panels) {
    const column = heights.indexOf(Math.min(...heights))
    const y = heights[column]
    parts.push(drawPanel(panel, column * COLUMN + 20, y))
    heights[column] = y + panel.bars.length * STEP + GAP + 20
  }
  const width = columns * COLUMN + 20
  const height = Math.max(...heights)
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" role="img" aria-label="${inXml(title)}">
<style>${STYLE}
</style>
<text class="head" x="20" y="26">${inXml(title)}</text>
<text class="sub" x="20" y="44">${inXml(subtitle)}</text>
${parts.join('\n')}
</svg>
`
}

function drawPanel({ title, bars, limit }, x, y) {
  const most = Math.max(limit ?? 0, ...bars.map(bar => bar.value)) || 1
  const room = COLUMN - LABEL - VALUE - 20
  const scale = value => Math.max(1, (value / most) * room)
  const left = x + LABEL
  const lines = [`<text class="title" x="${x}" y="${y + 14}">${inXml(title)}</text>`]
  bars.forEach(({ label, value, text, kind }, i) => {
    const top = y + GAP + i * STEP
    const width = scale(value).toFixed(1)
    const base = top + BAR - 3
    lines.push(
      `<text x="${left - 8}" y="${base}" text-anchor="end">${inXml(label)}</text>`,
      `<rect class="${kind}" x="${left}" y="${top}" width="${width}" height="${BAR}" rx="2"/>`,
      `<text class="value" x="${left + Number(width) + 6}" y="${base}">${inXml(text)}</text>`,
    )
  })
  if (limit !== undefined) {
    const at = left + scale(limit)
    const end = y + GAP + bars.length * STEP
    lines.push(`<line class="limit" x1="${at}" x2="${at}" y1="${y + GAP - 4}" y2="${end}"/>`)
  }
  return lines.join('\n')
}
