/**
 * Good VMDK images with fields, words and sizes changed where it hurts: thousands, each opened for writing
 * and written to. Whatever the image is, it is refused in a line, or what was written reads back, what was
 * not reads as before, and no file changes but those that its descriptor gives for writing.
 */
import { readFileSync, statSync } from 'node:fs'
import { basename, join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { closeChain } from '../../../src/image/opening/chain.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import type { FileSpec } from '../../../src/io/file-spec.js'
import { storeOf } from '../../../src/image/layer.js'
import { createDiskMemory } from '../../../src/image/writing/disk-memory.js'
import { ViewSet } from '../../../src/image/reading/view-set.js'
import type { SharedDisk } from '../../../src/image/writing/shared-disk.js'
import { inspectGrains } from '../../../src/formats/vmdk/grain-check.js'
import type { VmdkSpec } from '../../../src/formats/vmdk/open.js'
import { grainLayout } from '../../../src/formats/vmdk/layout.js'
import { WritableFileStore } from '../../../src/io/store.js'
import { buildCowd } from '../../fixtures/cowd-builder.js'
import { noise } from '../../fixtures/model.js'
import { buildExtent, type Grain, HEADER_AT } from '../../fixtures/vmdk-builder.js'
import { problemOf } from '../../support/exercise.js'
import { openImage, readAt } from '../../support/image.js'
import {
  type Before,
  type Content,
  contentOf,
  Guard,
  isSame,
  Model,
  perform,
  put,
  type Read,
  type Step,
  step,
} from '../../support/hostile-disk.js'
import { holds } from '../../support/property.js'
import { tempFolder } from '../../support/run.js'
import { bracketed, collectShared } from '../../support/writable.js'
import { descriptor, type Files } from './hostile-images.js'
import { cpuMs } from '../../support/cpu.js'

/** In a long test 30 times as many. */
const TRIES = 30
const SECTOR = 512
const K = 1024
/** Of one image, until it counts as slow. */
const SLOW_MS = 5000
/** Of the process, which has a hundred MiB without any image. */
const MAX_RSS_BYTES = 1.5 * 2 ** 30

// --- The images

const grain = (sectors: number, seed: number): Grain => ({
  kind: 'data',
  bytes: noise(sectors * SECTOR, seed),
})
const grains = (sectors: number, ...places: number[]) =>
  new Map(places.map((place, i): [number, Grain] => [place, grain(sectors, i + 1)]))

const sparse = buildExtent({
  capacitySectors: 512,
  grainSectors: 8,
  tableEntries: 16,
  hasZeroGrains: true,
  grains: new Map([...grains(8, 0, 1, 40, 63), [2, { kind: 'zero' }]]),
  descriptor: descriptor({ extents: ['RW 512 SPARSE "disk.vmdk"'] }),
})
const child = buildExtent({
  capacitySectors: 512,
  grainSectors: 4,
  tableEntries: 32,
  grains: grains(4, 3, 2, 1, 70),
  leavesOutTables: true,
  isUnclean: true,
  descriptor: descriptor({
    parent: { hint: 'base.vmdk' },
    extents: ['RW 511 SPARSE "disk.vmdk"'],
    cid: '77',
  }),
})
const cowd = buildCowd({
  sectors: 5000,
  grains: new Map([4999, 0, 1, 7].map(place => [place, noise(SECTOR, place)])),
})
const tiny = buildExtent({
  capacitySectors: 301,
  grainSectors: 1,
  tableEntries: 128,
  grains: grains(1, 0, 5),
})

const base = (sectors: number): Files => ({
  'base.vmdk': descriptor({
    extents: ['RW 200 FLAT "base-flat.vmdk" 3', `RW ${sectors - 200} ZERO`],
  }),
  'base-flat.vmdk': noise(203 * SECTOR, 99),
})

interface Base {
  readonly title: string
  readonly files: Files
  /** The file of which bytes or words are changed. */
  readonly file: string
  /** Where its fields are; undefined where it is text. */
  readonly fields?: readonly number[]
}

const { flags, capacity, redundantDirectory, directory, unclean } = HEADER_AT
const header = [4, flags, flags, capacity, HEADER_AT.grain, 28, 36, 44, redundantDirectory].concat(
  directory,
  directory,
  HEADER_AT.overhead,
  unclean,
)
const spread = (at: number, step: number, count: number) =>
  Array.from({ length: count }, (_, i) => at + i * step)
const fieldsOf = (built: typeof sparse) => [
  ...header,
  ...spread(built.directoryAt, 4, 4),
  ...spread(built.redundantDirectoryAt, 4, 4),
  ...[0, 1, 2, 3].flatMap(index => [built.tableAt(index), built.redundantTableAt(index)]),
  ...[0, 1, 2, 40, 63].flatMap(place => [built.entryAt(place), built.redundantEntryAt(place)]),
]

const overParent: Files = { 'disk.vmdk': child.bytes, ...base(512) }
const overCowd: Files = {
  'disk.vmdk': descriptor({ parent: { hint: 'base.vmdk' }, extents: ['RW 5000 VMFSSPARSE "x"'] }),
  x: cowd.bytes,
  ...base(5000),
}
const mixed: Files = {
  'disk.vmdk': descriptor({
    parent: { hint: 'base.vmdk' },
    extents: [
      'RW 299 SPARSE "s001"',
      'RW 11 FLAT "flat" 5',
      'RDONLY 7 FLAT "readonly" 1',
      'RW 13 ZERO',
      'RW 500 SPARSE "s002"',
      'RW 3 FLAT "flat" 17',
      'RW 4167 VMFSSPARSE "x"',
    ],
  }),
  s001: tiny.bytes,
  s002: sparse.bytes,
  flat: noise(30 * SECTOR, 50),
  readonly: noise(8 * SECTOR, 51),
  x: cowd.bytes,
  ...base(5000),
}

const bases: Base[] = [
  {
    title: 'a sparse image',
    files: { 'disk.vmdk': sparse.bytes },
    file: 'disk.vmdk',
    fields: fieldsOf(sparse),
  },
  {
    title: 'a child without some of its tables',
    files: overParent,
    file: 'disk.vmdk',
    fields: fieldsOf(child).filter(at => at > 0),
  },
  {
    title: 'a COWD extent',
    files: overCowd,
    file: 'x',
    fields: [8, 12, 16, 20, 24, 28, 28, 1648].concat(
      spread(cowd.directoryEntryAt(0), 4, 2),
      [0, 1, 7, 4999].map(cowd.entryAt),
      spread(cowd.entryAt(100), 4, 4),
    ),
  },
  {
    title: 'an extent of a mixed disk',
    files: mixed,
    file: 's001',
    fields: fieldsOf(tiny),
  },
  { title: 'the descriptor of a mixed disk', files: mixed, file: 'disk.vmdk' },
  { title: 'the descriptor of a child', files: overCowd, file: 'disk.vmdk' },
]

// --- Changes to the image

/** Places of things in the files, limits, signs and flags. */
const telling = fc.oneof(
  { weight: 4, arbitrary: fc.nat(60).map(BigInt) },
  { weight: 2, arbitrary: fc.nat(300).map(BigInt) },
  fc.nat(21).map(bit => 1n << BigInt(bit)),
  fc.constantFrom(0x7fffffffn, 0x80000000n, 0xfffffff8n, 0xffffffffn, 1n << 32n, 1n << 40n),
  fc.constantFrom((1n << 32n) - 16n, (1n << 53n) / 512n, 1n << 63n, (1n << 64n) - 1n),
)
const fieldChange = fc.record({
  kind: fc.constant('field' as const),
  index: fc.nat(1000),
  shift: fc.oneof(
    { weight: 4, arbitrary: fc.constant(0) },
    fc.nat(3).map(i => i * 4),
  ),
  width: fc.constantFrom(1, 4, 4, 4, 8),
  value: telling,
})
const sizeChange = fc.record({
  kind: fc.constant('size' as const),
  /** The bytes that the file gains or loses. */
  by: fc.oneof(
    fc.integer({ min: -3000, max: 3000 }),
    fc.integer({ min: -80, max: 80 }).map(sectors => sectors * SECTOR),
    fc
      .tuple(fc.constantFrom(2 ** 31, 2 ** 32, 2 ** 36), fc.integer({ min: -64, max: 64 }))
      .map(([size, sectors]) => size + sectors * SECTOR),
  ),
})
const word = fc.oneof(
  fc.constantFrom(
    'disk.vmdk',
    'base.vmdk',
    'base-flat.vmdk',
    'x',
    'flat',
    's001',
    's002',
    'readonly',
  ),
  fc.constantFrom('RW', 'RDONLY', 'NOACCESS', 'FLAT', 'SPARSE', 'VMFSSPARSE', 'VMFS', 'ZERO'),
  fc.constantFrom('0', '1', '5', '8', '17', '299', '301', '5000', '4294967295', '17592186044415'),
  fc.constantFrom('CID', 'cid', 'parentCID', 'changeTrackPath', 'ffffffff', 'fffffffe', '7'),
  fc.constantFrom('"', '=', '#', '\n', '\r', ' ', 'RW 5 ZERO\n', 'CID=1\n', '\u00a0'),
)
const wordChange = fc.record({
  kind: fc.constant('word' as const),
  how: fc.constantFrom(
    'word',
    'word',
    'word',
    'insert',
    'remove line',
    'repeat line',
    'swap lines',
  ),
  at: fc.nat(10_000),
  word,
})
type Change =
  | { kind: 'field'; index: number; shift: number; width: number; value: bigint }
  | { kind: 'size'; by: number }
  | { kind: 'word'; how: string; at: number; word: string }

/** Writes the files of `base` with these changes to `folder`, as far as they are not there. */
function putChanged(
  folder: string,
  { files, file, fields }: Base,
  changes: readonly Change[],
): void {
  for (const [name, content] of Object.entries(files)) put(join(folder, name), Buffer.from(content))
  const path = join(folder, file)
  let bytes = Buffer.from(files[file] as Buffer | string)
  let sizeBytes = -1
  for (const change of changes) {
    if (change.kind === 'word') bytes = Buffer.from(reworded(bytes.toString(), change))
    else if (change.kind === 'size') sizeBytes = Math.max(0, bytes.length + change.by)
    else {
      const { index, shift, width, value } = change
      const at = ((fields as number[])[index % (fields as number[]).length] as number) + shift
      for (let i = 0; i < width; i++) bytes[at + i] = Number((value >> BigInt(8 * i)) & 0xffn)
    }
  }
  put(path, bytes, sizeBytes >= 0 ? sizeBytes : bytes.length)
}

function reworded(text: string, { how, at, word }: Change & { kind: 'word' }): string {
  if (how === 'word' || how === 'insert') {
    const words = [...text.matchAll(how === 'word' ? /[^\s"=.]+/g : /\b/g)]
    const match = words[at % Math.max(words.length, 1)]
    if (!match) return word
    return text.slice(0, match.index) + word + text.slice(match.index + match[0].length)
  }
  const lines = text.split('\n')
  const index = at % lines.length
  const line = lines[index] as string
  if (how === 'swap lines') lines.splice(index, 2, lines[index + 1] ?? '', line)
  else lines.splice(index, 1, ...(how === 'remove line' ? [] : [line, line]))
  return lines.join('\n')
}

// --- Requests to the disk

/** Power cuts are not of account here, and syncing takes most of the time. */
class UnsyncedStore extends WritableFileStore {
  override sync(): void {}
}

const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }

interface Opened {
  readonly spec: VmdkSpec
  readonly path: string
  readonly disk: SharedDisk
  readonly read: Read
  close(): void
}

/** Returns undefined for what has become a raw image. Throws what opening throws. */
function openWritable(path: string): Opened | undefined {
  collectShared()
  const chain = openChain(path, { access: 'write', takesLocks: true })
  try {
    const [top] = chain.layers
    const spec = top.format === 'vmdk' ? (top.spec as VmdkSpec) : undefined
    const close = () => closeChain(chain)
    if (!spec) {
      close()
      return undefined
    }
    const memory = createDiskMemory(top, 1, storeOf(top))
    const source = {
      readable: storeOf,
      writable: ({ path, fd }: FileSpec, size: BigInt64Array) => new UnsyncedStore(path, fd, size),
    }
    const writing = { memory, thread: 0 }
    const set = new ViewSet(chain.layers, CACHES, undefined, writing, source)
    const entry = { kind: 'disk', layer: 0 } as Parameters<ViewSet['viewOf']>[0]
    const disk = set.disk as SharedDisk
    return { spec, path: top.path, disk, read: bracketed(disk, set.viewOf(entry)), close }
  } catch (error) {
    closeChain(chain)
    throw error
  }
}

interface Outcome {
  /** What went wrong, whatever the image is. */
  readonly problems: string[]
  /** Whether something was written, and the image closed in order. */
  readonly isWritten: boolean
}

/** Opens the image, writes to it and closes it. */
function useImage(folder: string, names: readonly string[], steps: readonly Step[]): Outcome {
  const path = join(folder, 'disk.vmdk')
  const before = new Map(names.map(name => [name, contentOf(join(folder, name))]))
  const changedFiles = () =>
    names.filter(name => !isSame(before.get(name) as Content, contentOf(join(folder, name))))
  let opened: Opened | undefined
  try {
    opened = openWritable(path)
  } catch (error) {
    const problem = problemOf(error)
    const problems = changedFiles().map(name => `${name} has changed, and was refused`)
    return { problems: problem ? [`open: ${problem}`, ...problems] : problems, isWritten: false }
  }
  if (!opened) return { problems: [], isWritten: false }
  try {
    const { disk, read, spec } = opened
    const model = new Model(disk.sizeBytes, steps, read)
    model.problems.push(...changedFiles().map(name => `${name} has changed before the first write`))
    const isSound = perform(opened.disk, steps, model)
    model.compare('once written,', read)
    const open = writtenFiles(opened)
    for (const name of changedFiles()) {
      if (!open.has(name)) model.problems.push(`${name} has changed, and is not to be written`)
    }
    model.problems.push(...flatProblems(folder, spec, before))
    if (isSound) inspectClosed(path, opened, model)
    return { problems: model.problems, isWritten: isSound }
  } finally {
    opened.close()
  }
}

/** The names of those files that may change. */
function writtenFiles({ spec, path }: Opened): Set<string> {
  const extents = spec.extents.flatMap(({ isWritable, file }) =>
    isWritable && file ? file.path : [],
  )
  return new Set([path, ...extents].map(file => basename(file)))
}

/** Of a file that has the disk's bytes as they are, what is not of the disk stays. */
function flatProblems(folder: string, { extents }: VmdkSpec, before: Before): string[] {
  return [...before].flatMap(([name, { bytes }]) => {
    const parts = extents.filter(({ file }) => file && basename(file.path) === name)
    if (parts.length === 0 || parts.some(({ layout }) => layout.kind !== 'flat')) return []
    const after = readFileSync(join(folder, name))
    // Skip the disk's own bytes.
    const masked = [Buffer.from(bytes), Buffer.from(after)].map(content => {
      for (const { layout, sizeBytes } of parts) {
        if (layout.kind !== 'flat') continue
        // One that is only read may end before.
        content.subarray(layout.startBytes, layout.startBytes + sizeBytes).fill(0)
      }
      return content
    })
    const isKept = (masked[0] as Buffer).equals(masked[1] as Buffer)
    return isKept && after.length === bytes.length
      ? []
      : [`${name} has changed outside of the disk`]
  })
}

/** The contents of the closed image, as the next program to open it reads them. */
function inspectClosed(path: string, { spec }: Opened, model: Model): void {
  for (const { file, isWritable, layout } of spec.extents) {
    const shape = grainLayout(layout)
    if (!file || !isWritable || !shape) continue
    const store = storeOf({ ...file, sizeBytes: statSync(file.path).size })
    const complain = (at: number, message: () => string) => {
      model.problems.push(`${basename(file.path)} is damaged at ${at}: ${message()}`)
    }
    inspectGrains(store, shape, {
      corruption: complain,
      disagreement: (at, _from, _isContradiction, message) => complain(at, message),
      unused: () => {},
    })
  }
  const image = openImage(path)
  model.compare('once closed,', (offset, length) => readAt(image.view(), offset, length))
  image.close()
}

// --- The runs

const guard = new Guard(t)

function judged(folder: string, base: Base, changes: readonly Change[], steps: readonly Step[]) {
  putChanged(folder, base, changes)
  guard.beat()
  const started = cpuMs()
  const outcome = useImage(folder, Object.keys(base.files), steps)
  const took = cpuMs() - started
  guard.beat()
  if (took > SLOW_MS) outcome.problems.push(`it took ${Math.round(took)} ms`)
  return outcome
}

for (const base of bases) {
  t.test(base.title, async t => {
    const folder = tempFolder(t)
    const steps = fc.array(step, { minLength: 1, maxLength: 12 })
    const change: fc.Arbitrary<Change> = base.fields
      ? fc.oneof({ weight: 5, arbitrary: fieldChange }, { weight: 1, arbitrary: sizeChange })
      : wordChange
    const changes = fc.array(change, { minLength: 0, maxLength: 3 })
    let written = 0
    const runs = await holds(fc.tuple(changes, steps), TRIES, ([changes, steps]) => {
      const { problems, isWritten } = judged(folder, base, changes, steps)
      if (isWritten) written++
      if (problems.length > 0) throw new Error(problems.slice(0, 3).join('\n'))
    })
    t.comment(`${runs} images, ${written} of them written`)
    t.ok(runs >= TRIES, `${runs} images`)
    t.ok(written > 0 && written < runs, 'some of them are written, and some refused')
  })
}

/** The entry of grain 0 in the redundant table alone, as a longer search has set it. */
const loneEntry = (sector: bigint): Change => ({
  kind: 'field',
  index: fieldsOf(child)
    .filter(at => at > 0)
    .indexOf(child.redundantTableAt(0)),
  shift: 0,
  width: 1,
  value: sector,
})
const FOUND: Record<string, Change> = {
  'an entry of a redundant table alone that names a table': loneEntry(25n),
  'an entry of a redundant table alone that names the grain of another': loneEntry(32n),
}

for (const [title, change] of Object.entries(FOUND)) {
  t.test(title, async t => {
    const base = bases.find(({ files }) => files === overParent) as Base
    const write: Step = { kind: 'write', from: 'start', at: 0, isAligned: false, length: 1 }
    t.same(judged(tempFolder(t), base, [change], [write]).problems, [])
  })
}

t.test('memory', async t => {
  const most = process.resourceUsage().maxRSS * K
  t.ok(most < MAX_RSS_BYTES, `${Math.round(most / 2 ** 20)} MiB`)
})
