/**
 * The usage of an image as a page in one file: a map of the disk, a bar for each snapshot, and the same as tables. It has no
 * script and loads nothing, so names in it are only text.
 */
import fs from 'node:fs'
import { withoutHidden } from '../hidden-characters.js'
import type { DiskMap } from '../formats/disk-map.js'
import type { Reach } from '../formats/usage.js'
import { NewFiles } from '../image/making/new-files.js'
import { isFile } from '../image/reading/image-name.js'
import type { ImageUsage, LayerUsage } from '../image/usage.js'
import { humanSize } from './human.js'
import { SPACE_NAMES, gainOf } from './usage-text.js'

/** Writes the page into `file`, which is replaced as a whole. Throws ImageError, SystemError, and Node's errors. */
export function writePage(
  file: string,
  name: string,
  usage: ImageUsage,
  chosen: readonly string[],
): void {
  const bytes = Buffer.from(usagePage(name, usage, chosen))
  // A slip of the user must not replace the image by the page.
  const images = usage.layers
    .filter(({ path }) => isFile(path))
    .map(({ path }) => ({ fd: fs.openSync(path, 'r') }))
  try {
    const files = new NewFiles(file, { force: true, sources: images })
    try {
      files.main.store.write(bytes, 0, bytes.length, 0)
      files.commit()
    } finally {
      files.discard()
    }
  } finally {
    for (const { fd } of images) fs.closeSync(fd)
  }
}

const COLUMNS = 64
/** The side of a cell, and the space between two. */
const SIDE = 10
const STEP = 11
/** How many snapshots have a colour of their own; the rest begin again. */
const COLOURS = 8

export function usagePage(name: string, usage: ImageUsage, chosen: readonly string[]): string {
  const { layers, diskBytes, map, snapshots, disk, problems } = usage
  const [top] = layers as [LayerUsage]
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>${text(`Usage of ${name}`)}</title>
<style>${STYLE}</style>
</head>
<body>
<main>
<h1>${text(name)}</h1>
<p>${text(`${top.format}, a disk of ${humanSize(diskBytes)}. The file has ${humanSize(top.fileBytes)}, and takes ${humanSize(top.allocatedBytes)} on its file system.`)}</p>
${problems.map(problem => `<p class="problem">${text(`These figures are not exact: ${problem}.`)}</p>`).join('\n')}
${map ? mapSection(map, usage) : ''}
${disk && snapshots.length > 0 ? snapshotSection(disk, usage, chosen) : ''}
${spaceSection(top)}
${layers.length > 1 ? layerSection(layers) : ''}
</main>
</body>
</html>
`
}

const ESCAPES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

/** Returns text for HTML: markup in it, and characters that hide, are shown as they are written. */
const text = (raw: string): string =>
  withoutHidden(raw).replace(/[&<>"']/g, character => ESCAPES[character] as string)

/** The class with the colour of the snapshot with this index, from 1 on. */
const colourOf = (index: number): string => `s${((index - 1) % COLOURS) + 1}`

function mapSection(map: DiskMap, { snapshots, layers, diskBytes }: ImageUsage): string {
  const cells = map.data.length
  const rows = Math.ceil(cells / COLUMNS)
  const sum = (column: readonly number[]) => column.reduce((all, bytes) => all + bytes, 0)
  const totals: [string, string, number][] = [
    ['own', 'data', sum(map.data)],
    ['packed', 'compressed data', sum(map.compressed)],
    ['below', 'data of the layers below', layers.length > 1 ? sum(map.below) : 0],
    ['zero', 'zeros', sum(map.zero)],
  ]
  const rest = Math.max(0, diskBytes - totals.reduce((all, [, , bytes]) => all + bytes, 0))
  const listed = [...totals, ['none', 'not allocated', rest] as const]
  const summary = listed.map(([, what, bytes]) => `${what} ${humanSize(bytes)}`).join(', ')
  const shared = [...new Set(map.sharedWith)].filter(index => index > 0).sort((a, b) => a - b)
  return `<section>
<h2>Map of the disk</h2>
<p>From the first byte, at the top left, to the last; each square is ${text(humanSize(map.cellBytes))}.
Its colour says which snapshot shares most of its data, the newest one that does.</p>
<svg viewBox="0 0 ${COLUMNS * STEP} ${Math.max(1, rows) * STEP}" role="img" aria-label="${text(`Map of the disk: ${summary}`)}">
<defs><pattern id="stripes" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="2" height="4" class="stripe"/></pattern></defs>
${Array.from({ length: cells }, (_, cell) => square(map, cell)).join('')}
</svg>
<ul class="key" aria-label="Key">
<li><span class="swatch own"></span>data of the disk alone</li>
${shared.map(index => `<li><span class="swatch ${colourOf(index)}"></span>${text(`shared with ${snapshots[index - 1]?.name ?? index}`)}</li>`).join('\n')}
<li><span class="swatch own striped"></span>compressed</li>
${layers.length > 1 ? '<li><span class="swatch below"></span>from a layer below</li>' : ''}
<li><span class="swatch zero"></span>zeros</li>
<li><span class="swatch none"></span>not allocated</li>
</ul>
${table(
  'What the disk consists of',
  ['Part', 'Bytes of the disk'],
  listed.map(([, what, bytes]) => [what, humanSize(bytes)]),
)}
</section>`
}

/** Returns a cell: how much of it is data shows in how strong its colour is. */
function square(map: DiskMap, cell: number): string {
  const x = (cell % COLUMNS) * STEP
  const y = Math.floor(cell / COLUMNS) * STEP
  const at = (column: readonly number[]) => column[cell] ?? 0
  const [data, packed, below, zero] = [map.data, map.compressed, map.below, map.zero].map(at) as [
    number,
    number,
    number,
    number,
  ]
  const own = data + packed
  const used = own + below
  const kind =
    used === 0
      ? zero > 0
        ? 'zero'
        : 'none'
      : below > own
        ? 'below'
        : at(map.sharedWith) > 0
          ? colourOf(at(map.sharedWith))
          : 'own'
  const share = used > 0 ? Math.min(1, Math.max(0.35, used / map.cellBytes)) : 1
  const place = `x="${x}" y="${y}" width="${SIDE}" height="${SIDE}"`
  const strength = share < 1 ? ` opacity="${share.toFixed(2)}"` : ''
  const stripes = packed > data && used > 0 ? `<rect ${place} fill="url(#stripes)"/>` : ''
  return `<rect ${place} class="${kind}"${strength}/>${stripes}`
}

function snapshotSection(
  disk: Reach,
  { snapshots, chosen: together }: ImageUsage,
  chosen: readonly string[],
): string {
  const all: [string, string, Reach][] = [
    ['own', 'the disk', disk],
    ...snapshots.map((one, index): [string, string, Reach] => [
      colourOf(index + 1),
      `${one.name} (${one.id})`,
      one,
    ]),
    ...(together && chosen.length > 1
      ? [['none', `together: ${chosen.join(', ')}`, together] as [string, string, Reach]]
      : []),
  ]
  const most = Math.max(1, ...all.map(([, , { referencedBytes }]) => referencedBytes))
  const width = (bytes: number) => `${((bytes / most) * 100).toFixed(2)}%`
  const bars = all.map(
    ([colour, name, { referencedBytes, exclusiveBytes }]) =>
      `<div class="bar"><span class="name">${text(name)}</span><span class="track"><span class="part shared ${colour}" style="width:${width(referencedBytes - Math.min(referencedBytes, exclusiveBytes))}"></span><span class="part ${colour}" style="width:${width(Math.min(referencedBytes, exclusiveBytes))}"></span></span></div>`,
  )
  return `<section>
<h2>Snapshots</h2>
<p>The pale part of a bar is shared with others; the strong part comes back when the snapshot is deleted.</p>
<div aria-hidden="true">
${bars.join('\n')}
</div>
${table(
  'What each refers to and alone holds',
  ['Name', 'Refers to', 'Alone holds'],
  all.map(([, name, reach]) => [
    name,
    humanSize(reach.referencedBytes),
    humanSize(reach.exclusiveBytes),
  ]),
)}
</section>`
}

function spaceSection({ space, compression, heldBytes, tableBytes }: LayerUsage): string {
  const rows = space
    ? SPACE_NAMES.map(([part, what]) => [what, humanSize(space[part])])
    : [
        ['data of the disk', humanSize(heldBytes)],
        ['all tables that it can have', humanSize(tableBytes)],
      ]
  const gain =
    compression && compression.units > 0
      ? `<p>${text(`Compression saves ${humanSize(gainOf(compression))} of ${humanSize(compression.unpackedBytes)}.`)}</p>`
      : ''
  return `<section>
<h2>The file</h2>
${table('Where its space went', ['Part', 'Size'], rows)}
${gain}
</section>`
}

function layerSection(layers: readonly LayerUsage[]): string {
  const rows = layers.map(({ path, format, heldBytes, usedBytes, allocatedBytes }) => [
    `${path} (${format})`,
    humanSize(allocatedBytes),
    humanSize(heldBytes),
    humanSize(usedBytes),
  ])
  return `<section>
<h2>Layers</h2>
${table('What the disk stands on', ['File', 'On its file system', 'Data for the disk', 'In use'], rows)}
</section>`
}

/** Returns a table whose first column names the rows. */
function table(
  caption: string,
  titles: readonly string[],
  rows: readonly (readonly string[])[],
): string {
  const head = titles.map(title => `<th scope="col">${text(title)}</th>`).join('')
  const body = rows
    .map(([first = '', ...rest]) => {
      const cells = rest.map(cell => `<td>${text(cell)}</td>`).join('')
      return `<tr><th scope="row">${text(first)}</th>${cells}</tr>`
    })
    .join('\n')
  return `<div class="scroll" role="region" tabindex="0" aria-label="${text(caption)}"><table><caption>${text(caption)}</caption>
<thead><tr>${head}</tr></thead>
<tbody>
${body}
</tbody></table></div>`
}

const STYLE = `
:root{--page:#fff;--ink:#1c1e21;--soft:#5a6068;--line:#d5d9de;--own:#3b4754;--below:#9aa4ae;--zero:#dfe3e8;
--s1:#0b62c4;--s2:#b8470b;--s3:#0a7a4b;--s4:#8a2fb0;--s5:#a8860a;--s6:#0a7f93;--s7:#c2185b;--s8:#5b5fd6;--warn:#8a1c1c}
@media (prefers-color-scheme:dark){:root{--page:#14171a;--ink:#e8eaed;--soft:#a4abb3;--line:#3a4047;--own:#c3ccd6;--below:#6b7681;--zero:#2c3238;
--s1:#6cb0ff;--s2:#ff9a5c;--s3:#4fd199;--s4:#d48cf5;--s5:#e6c44a;--s6:#4fcbe0;--s7:#ff7aa8;--s8:#a3a6ff;--warn:#ff9c9c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin-top:2rem}
p{color:var(--soft);max-width:45rem}.problem{color:var(--warn);font-weight:600}
svg{display:block;width:100%;height:auto}
.own{fill:var(--own);background:var(--own)}.below{fill:var(--below);background:var(--below)}.zero{fill:var(--zero);background:var(--zero)}
.none{fill:none;stroke:var(--line);background:none}rect.none{stroke-width:1}
${Array.from({ length: COLOURS }, (_, i) => `.s${i + 1}{fill:var(--s${i + 1});background:var(--s${i + 1})}`).join('')}
.stripe{fill:var(--page);opacity:.55}
.key{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:0;list-style:none;overflow-wrap:anywhere}
.swatch{display:inline-block;width:.9em;height:.9em;margin-right:.4em;vertical-align:-.1em;border:1px solid var(--line)}
.striped{background-image:repeating-linear-gradient(45deg,var(--page) 0 2px,transparent 2px 4px)}
.bar{display:grid;grid-template-columns:minmax(6rem,14rem) 1fr;gap:.8rem;align-items:center;margin:.3rem 0}
.name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.track{display:flex;height:1.1rem;background:var(--zero)}.part{display:block;height:100%}.shared{opacity:.4}
.part.none{background:var(--soft)}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;min-width:20rem}
caption{text-align:left;font-weight:600;padding-bottom:.3rem}
th,td{padding:.25rem .9rem .25rem 0;border-bottom:1px solid var(--line);text-align:left;font-weight:400;overflow-wrap:anywhere}
thead th{color:var(--soft)}td{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
thead th:not(:first-child){text-align:right}
@media (max-width:30rem){.bar{grid-template-columns:1fr;gap:.1rem}}
`
