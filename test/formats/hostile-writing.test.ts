/**
 * Good cow, qcow and encrypted qcow2 images with fields, bits and sizes changed where it hurts: thousands, each
 * opened for writing and written to. Whatever the image is, it is refused in a line, or what was written reads
 * back, what was not reads as before, snapshots and all other files stay as they are, and a check finds no
 * damage that was not there; of qcow2 where a check found none before.
 */
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { catalogOf } from '../../src/image/catalog.js'
import { closeChain } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { checkCow } from '../../src/formats/cow/check.js'
import { createDiskMemory } from '../../src/image/writing/disk-memory.js'
import type { View } from '../../src/formats/driver.js'
import { unlockChain } from '../../src/image/opening/encryption.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { storeOf } from '../../src/image/layer.js'
import { checkQcow } from '../../src/formats/qcow/check.js'
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import type { Store } from '../../src/io/store.js'
import { luksContainer } from '../crypto/luks-builder.js'
import { buildCow, LAYOUTS } from '../fixtures/cow-builder.js'
import { noise, prose } from '../fixtures/model.js'
import { buildQcow, HEADER_AT, type Cluster as QcowCluster } from '../fixtures/qcow-builder.js'
import { buildImage, type Cluster } from '../fixtures/qcow2-builder.js'
import {
  type EncryptedImage,
  encryptedIo,
  makeEncrypted,
  takeSnapshot,
} from '../peers/encrypted.js'
import { problemOf } from '../support/exercise.js'
import {
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
} from '../support/hostile-disk.js'
import { readAt } from '../support/image.js'
import { holds } from '../support/property.js'
import { needs } from '../support/run.js'
import { bracketed, collectShared } from '../support/writable.js'
import { cpuMs } from '../support/cpu.js'

/** In a long test 30 times as many. */
const TRIES = 30
const SECTOR = 512
const K = 1024
/** Of one image, until it counts as slow. */
const SLOW_MS = 5000
/** Of the process, which has a hundred MiB without any image. */
const MAX_RSS_BYTES = 1.5 * 2 ** 30
const PASSPHRASE = 'open sesame'

// --- The images

/** A field, of so many bytes. */
type Field = readonly [at: number, bytes: number]

interface Base {
  readonly title: string
  readonly format: string
  /** Makes the image in `folder`, where its backing file is. */
  make(folder: string): Promise<Made> | Made
}

interface Made {
  readonly bytes: Buffer
  readonly fields: readonly Field[]
}

const BASE_NAME = 'base.raw'
const BASE_BYTES = 150 * K + 100

const cows: Base[] = LAYOUTS.map(layout => ({
  title: `cow, ${layout}`,
  format: 'cow',
  make: folder => {
    const runs = [0, 1, 2, 9, 200, 201, 400].map((sector): [number, Buffer] => [
      sector,
      noise(SECTOR, sector),
    ])
    const sizeBytes = 401 * SECTOR
    const backing = layout.startsWith('uml') ? join(folder, BASE_NAME) : BASE_NAME
    const { bytes, bitmapAt } = buildCow({ layout, sizeBytes, sectors: new Map(runs), backing })
    const [nameAt, secondsAt, sizeAt, sectorAt] = {
      'qemu-x86-64': [8, 1032, 1040, 1048],
      'qemu-i386': [8, 1032, 1036, 1044],
      'uml-2': [8, 4104, 4108, 4116],
      'uml-3': [32, 8, 12, 20],
      'uml-3-broken': [36, 8, 16, 24],
    }[layout] as [number, number, number, number]
    const fields: Field[] = [
      [4, 4],
      [nameAt, 1],
      [secondsAt, 4],
      [sizeAt, 8],
      [sizeAt, 8],
      [sizeAt + 4, 4],
      [sectorAt, 4],
      ...[0, 1, 25, 49, 50].map((byte): Field => [bitmapAt + byte, 1]),
      [bitmapAt + 8, 8],
    ]
    if (layout.startsWith('uml-3')) fields.push([sectorAt + 4, 4], [sectorAt + 8, 4])
    return { bytes, fields }
  },
}))

const qcowFields = (built: ReturnType<typeof buildQcow>): Field[] => [
  [HEADER_AT.backingOffset, 8],
  [HEADER_AT.backingBytes, 4],
  [HEADER_AT.sizeBytes, 8],
  [HEADER_AT.sizeBytes, 8],
  [HEADER_AT.clusterBits, 1],
  [HEADER_AT.l2Bits, 1],
  [HEADER_AT.cryptMethod, 4],
  [HEADER_AT.l1Offset, 8],
  ...[0, 1, 2, 3].map((index): Field => [built.l1EntryAt(index), 8]),
  ...[0, 1, 2, 5, 64, 65, 66].map((cluster): Field => [built.entryAt(cluster), 8]),
]

const qcowData = (bits: number): ReadonlyMap<number, QcowCluster> =>
  new Map<number, QcowCluster>([
    [0, { kind: 'data', bytes: noise(2 ** bits, 1) }],
    [2, { kind: 'packed', content: prose(2 ** bits, 2) }],
    [1, { kind: 'data', bytes: noise(2 ** bits, 3) }],
    [65, { kind: 'data', bytes: noise(2 ** bits, 4) }],
  ])

const qcow = (title: string, spec: Partial<Parameters<typeof buildQcow>[0]>): Base => ({
  title: `qcow, ${title}`,
  format: 'qcow',
  make: () => {
    const bits = spec.clusterBits ?? 12
    const sizeBytes = 200 * 2 ** bits + 700
    const all = { sizeBytes, clusters: qcowData(bits), clusterBits: bits, l2Bits: 6, ...spec }
    const built = buildQcow(all)
    return { bytes: built.bytes, fields: qcowFields(built) }
  },
})

const qcow2Data = new Map<number, Cluster>([
  [0, { kind: 'data', bytes: noise(4 * K, 1) }],
  [1, { kind: 'data', bytes: noise(4 * K, 2) }],
  [5, { kind: 'zero' }],
])

const quickLuks = luksContainer({
  mode: 'xts',
  ivGenerator: 'plain64',
  ivHash: undefined,
  key: noise(64, 8),
  hash: 'sha256',
  passphrases: [PASSPHRASE, 'another'],
})

/** Where an encrypted qcow2 image has what says how. */
const cryptFields = (bytes: Buffer): Field[] => {
  const fields: Field[] = [
    [24, 8],
    [32, 4],
    [36, 4],
    [40, 8],
    [48, 8],
    [72, 8],
  ]
  const l1 = Number(bytes.readBigUInt64BE(40))
  fields.push([l1, 8])
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n)
  if (l2 > 0) fields.push([l2, 8], [l2 + 8, 8], [l2 + 40, 8])
  const area = luksArea(bytes)
  if (area === undefined) return fields
  fields.push([area.field, 8], [area.field + 8, 8])
  // Key slots and the fields of the header.
  for (const at of [6, 8, 40, 72, 104, 108, 164]) fields.push([area.at + at, 4])
  for (const slot of [0, 1]) {
    for (const at of [0, 4, 40, 44]) fields.push([area.at + 208 + slot * 48 + at, 4])
  }
  return fields
}

/** The LUKS header of an image, and where the extension says where it is. */
function luksArea(bytes: Buffer): { at: number; field: number } | undefined {
  for (let at = bytes.readUInt32BE(100); at + 24 <= 4096; ) {
    const [type, length] = [bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)]
    if (type === 0x0537be77) return { at: Number(bytes.readBigUInt64BE(at + 8)), field: at + 8 }
    if (type === 0) return undefined
    at += 8 + Math.ceil(length / 8) * 8
  }
  return undefined
}

const bases: Base[] = [
  ...cows,
  qcow('over a parent', { clusterBits: 9, backingName: BASE_NAME }),
  qcow('4 KiB, over a parent', { backingName: BASE_NAME }),
  qcow('alone, clusters at any sector', { alignment: SECTOR, gapSectors: 1 }),
  qcow('AES, over a parent', { backingName: BASE_NAME, cryptMethod: 1 }),
  {
    title: 'qcow2, AES, with a snapshot, over a parent',
    format: 'qcow2',
    make: () => {
      const built = buildImage({
        clusterBits: 12,
        sizeBytes: 1024 * K,
        clusters: qcow2Data,
        backing: { name: BASE_NAME, format: 'raw' },
        snapshots: [
          { name: 'one', clusters: new Map([[0, { kind: 'data', bytes: noise(4 * K, 4) }]]) },
        ],
      })
      const bytes = built.bytes()
      bytes.writeUInt32BE(1, 32)
      return { bytes, fields: cryptFields(bytes) }
    },
  },
  {
    title: 'qcow2, LUKS, with a snapshot',
    format: 'qcow2',
    make: async folder => {
      const file = join(folder, 'made.qcow2')
      const image: EncryptedImage = { file, format: 'qcow2', passphrase: PASSPHRASE }
      await makeEncrypted(image, 1024 * K, { format: 'luks' }, { options: ['cluster_size=4k'] })
      await encryptedIo(image, ['write -P 1 0 20k', 'write -P 2 500k 3k'])
      await takeSnapshot(image, 'one')
      await encryptedIo(image, ['write -P 3 4k 4k'])
      const bytes = readFileSync(file)
      rmSync(file)
      // With key slots that open at once: then the disk is noise, as good as any other.
      quickLuks.copy(bytes, luksArea(bytes)?.at)
      return { bytes, fields: cryptFields(bytes) }
    },
  },
]

// --- Changes to the image

/** Places of things in the files, limits, signs and flags. */
const telling = fc.oneof(
  { weight: 4, arbitrary: fc.nat(60).map(i => BigInt(i * SECTOR)) },
  { weight: 3, arbitrary: fc.nat(600).map(BigInt) },
  { weight: 2, arbitrary: fc.nat(63).map(bit => 1n << BigInt(bit)) },
  { weight: 1, arbitrary: fc.nat(40).map(i => (1n << 63n) | BigInt(i * SECTOR)) },
  fc.constantFrom(0xffn, 0x7fffffffn, 0xfffffff8n, 0xffffffffn, (1n << 53n) + 1n, (1n << 64n) - 1n),
)
const change = fc.oneof(
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant('field' as const),
      index: fc.nat(1000),
      value: telling,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('flip' as const),
      at: fc.nat(2 ** 16),
      bit: fc.nat(7),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('size' as const),
      by: fc.oneof(
        fc.integer({ min: -6000, max: 3000 }),
        fc.integer({ min: -400, max: 80 }).map(sectors => sectors * SECTOR),
        fc.constantFrom(2 ** 31, 2 ** 36),
      ),
    }),
  },
)
type Change = Parameters<Parameters<typeof change.map>[0]>[0]

const IMAGE = 'disk.img'

function putChanged(folder: string, { bytes, fields }: Made, changes: readonly Change[]): void {
  put(join(folder, BASE_NAME), noise(BASE_BYTES, 99))
  const file = Buffer.from(bytes)
  let sizeBytes = file.length
  for (const each of changes) {
    if (each.kind === 'size') sizeBytes = Math.max(0, bytes.length + each.by)
    else if (each.kind === 'flip') file[each.at % Math.min(file.length, 2 ** 16)]! ^= 1 << each.bit
    else {
      const [at, width] = fields[each.index % fields.length] as Field
      for (let i = 0; i < width; i++) {
        file[at + i] = Number((each.value >> BigInt(8 * (width - 1 - i))) & 0xffn)
      }
    }
  }
  put(join(folder, IMAGE), file, sizeBytes)
}

// --- The runs

const CACHES = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
/** Of a snapshot. */
const SHOWN_BYTES = 256 * K
const PIECE_BYTES = 4 * K
type Shown = readonly (Buffer | undefined)[]
/** Of a file with the hole that a test has made. */
const MAX_CHECKED_BYTES = 2 ** 33
/** This file does not test key derivations that take longer. */
const MAX_ITERATIONS = 20_000

interface Opened {
  readonly disk: WritableDisk
  readonly read: Read
  readonly snapshots: readonly View[]
  close(): void
}

/** For writing, as a mount opens it; undefined where that would take too long. Throws what opening throws. */
async function open(
  path: string,
  format: string,
  access: 'read' | 'write',
): Promise<Opened | undefined> {
  collectShared()
  const chain = openChain(path, { format, access, takesLocks: true })
  let isSlow = false
  try {
    const unlocked = await unlockChain(chain, async file => {
      isSlow = isSlowToUnlock(contentOf(file).bytes)
      if (isSlow) throw new Error('it would take too long')
      return [Buffer.from(PASSPHRASE)]
    })
    const [top] = unlocked.layers
    const memory = createDiskMemory(top, 1, storeOf(top))
    const writing = access === 'write' ? { memory, thread: 0 } : undefined
    const set = new ViewSet(unlocked.layers, CACHES, undefined, writing)
    const { entries } = catalogOf(unlocked)
    const views = entries.filter(({ kind }) => kind === 'snapshot').slice(0, 3)
    const view = set.viewOf(entries[0] as (typeof entries)[0])
    const disk = set.disk as WritableDisk
    return {
      disk,
      read: disk ? bracketed(disk, view) : (offset, length) => readAt(view, offset, length),
      snapshots: views.map(entry => set.viewOf(entry)),
      close: () => closeChain(chain),
    }
  } catch (error) {
    closeChain(chain)
    if (isSlow) return undefined
    throw error
  }
}

function isSlowToUnlock(bytes: Buffer): boolean {
  const area = luksArea(bytes)
  if (!area || area.at + 592 > bytes.length) return false
  const slots = Array.from({ length: 8 }, (_, i) => area.at + 208 + i * 48)
  const active = slots.filter(at => bytes.readUInt32BE(at) === 0x00ac71f3)
  const counts = [area.at + 164, ...active.map(at => at + 4)].map(at => bytes.readUInt32BE(at))
  return counts.some(count => count > MAX_ITERATIONS)
}

const CHECKS: Partial<Record<string, (store: Store) => { readonly corruptions: number }>> = {
  cow: checkCow,
  qcow: checkQcow,
  qcow2: checkQcow2,
}

/** How much damage a check finds; undefined where it refuses to, or would take long. */
function damages(path: string, format: string): number | undefined {
  const sizeBytes = statSync(path).size
  if (sizeBytes > MAX_CHECKED_BYTES) return undefined
  const fd = openSync(path, 'r')
  const store = storeOf({ path, fd, sizeBytes })
  try {
    return CHECKS[format]?.(store).corruptions
  } catch (error) {
    if (problemOf(error)) throw error
    return undefined
  } finally {
    closeSync(fd)
  }
}

interface Outcome {
  /** What went wrong, whatever the image is. */
  readonly problems: string[]
  /** Whether something was written, and the image closed in order. */
  readonly isWritten: boolean
}

const NOTHING: Outcome = { problems: [], isWritten: false }

async function useImage(folder: string, format: string, steps: readonly Step[]): Promise<Outcome> {
  const [path, basePath] = [join(folder, IMAGE), join(folder, BASE_NAME)]
  let before: readonly Content[] = [contentOf(path), contentOf(basePath)]
  const hasChanged = (file: 0 | 1) =>
    !isSame(before[file] as Content, contentOf(file === 0 ? path : basePath))
  const damage = damages(path, format)
  // Of qcow2 the counts say what is free, and a cluster may show what is none of the guest's: where a check
  // finds damage, writing may change what reads as something else, and add to it.
  const isJudged = damage === 0 || format !== 'qcow2'
  let opened: Opened | undefined
  try {
    opened = await open(path, format, 'write')
  } catch (error) {
    const problem = problemOf(error)
    const problems = hasChanged(0) || hasChanged(1) ? ['a file has changed, and was refused'] : []
    return { problems: problem ? [`open: ${problem}`, ...problems] : problems, isWritten: false }
  }
  if (!opened) return NOTHING
  // A qcow2 image that was not closed cleanly is made right when it is opened.
  if (format === 'qcow2') before = [contentOf(path), before[1] as Content]
  const model = new Model(opened.disk.sizeBytes, steps, opened.read)
  const { problems } = model
  let isSound = false
  const shown = opened.snapshots.map(view => shownBy(view, problems))
  try {
    if (hasChanged(0)) problems.push('the image has changed before the first write')
    isSound = perform(opened.disk, steps, model)
    if (isJudged) model.compare('once written,', opened.read)
    opened.snapshots.forEach((view, i) => {
      if (isJudged && !stays(shown[i] as Shown, view, problems)) problems.push('a snapshot changed')
    })
    if (hasChanged(1)) problems.push('the backing file has changed')
  } finally {
    opened.close()
  }
  if (isSound) {
    const now = damages(path, format)
    const isChecked = damage !== undefined && statSync(path).size <= MAX_CHECKED_BYTES
    if (isJudged && isChecked && (now === undefined || now > damage)) {
      problems.push(`a check finds ${now} corruptions where there were ${damage}`)
    }
    const again = await open(path, format, 'read')
    if (isJudged) model.compare('once closed,', again?.read as Read)
    again?.snapshots.forEach((view, i) => {
      if (isJudged && !stays(shown[i] as Shown, view, problems)) problems.push('a snapshot changed')
    })
    again?.close()
  }
  return { problems, isWritten: isSound }
}

/** The beginning of what a view shows, in pieces; undefined for one that cannot be read. */
function shownBy(view: View, problems: string[]): (Buffer | undefined)[] {
  const length = Math.min(SHOWN_BYTES, view.driver.sizeBytes)
  return Array.from({ length: Math.ceil(length / PIECE_BYTES) }, (_, i) => {
    const at = i * PIECE_BYTES
    try {
      return readAt(view, at, Math.min(PIECE_BYTES, length - at))
    } catch (error) {
      const problem = problemOf(error)
      if (problem) problems.push(`reading a snapshot: ${problem}`)
      return undefined
    }
  })
}

/** Whether what could be read of a snapshot reads as before. */
function stays(before: Shown, view: View, problems: string[]): boolean {
  const now = shownBy(view, problems)
  return before.every((piece, i) => piece === undefined || now[i]?.equals(piece) === true)
}

/** In memory where there is such a place: syncing to a disk takes most of the time. */
function quickFolder(t: Test): string {
  const parent = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()
  const folder = mkdtempSync(join(parent, 'vimgfs-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

const guard = new Guard(t)

for (const base of bases) {
  const tools = base.title.includes('LUKS') ? ['qemu-img', 'qemu-io'] : []
  t.test(base.title, needs(...tools), async t => {
    const folder = quickFolder(t)
    const made = await base.make(folder)
    const judged = async (changes: readonly Change[], steps: readonly Step[]) => {
      putChanged(folder, made, changes)
      guard.beat()
      const started = cpuMs()
      const outcome = await useImage(folder, base.format, steps)
      const took = cpuMs() - started
      guard.beat()
      if (took > SLOW_MS) outcome.problems.push(`it took ${Math.round(took)} ms`)
      return outcome
    }
    const steps = fc.array(step, { minLength: 1, maxLength: 12 })
    const changes = fc.array(change, { minLength: 0, maxLength: 3 })
    let written = 0
    /** The one that the end of the time came into goes on. */
    let last: Promise<Outcome> = Promise.resolve(NOTHING)
    const runs = await holds(fc.tuple(changes, steps), TRIES, async ([changes, steps]) => {
      last = judged(changes, steps)
      const { problems, isWritten } = await last
      if (isWritten) written++
      if (problems.length > 0) throw new Error(problems.slice(0, 3).join('\n'))
    })
    await last
    t.comment(`${runs} images, ${written} of them written`)
    t.ok(runs >= TRIES, `${runs} images`)
    t.ok(written > 0 && written < runs, 'some of them are written, and some refused')
  })
}

t.test('memory', async t => {
  const most = process.resourceUsage().maxRSS * K
  t.ok(most < MAX_RSS_BYTES, `${Math.round(most / 2 ** 20)} MiB`)
})
