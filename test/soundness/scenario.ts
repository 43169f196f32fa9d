/** Runs steps against a disk and its model at once, over stores that tests see into. */
import { checkQcow2 } from '../../src/formats/qcow2/check.js'
import type { WritableStore } from '../../src/io/store.js'
import { ReusedBuffers } from '../support/image.js'
import type { MemoryStore } from '../support/stores.js'
import { type OpenDisk, type Opener, readDisk, readImage } from '../support/writable.js'
import { DiskModel, type Strictness } from './disk-model.js'
import { type Bitmap, judge, type Verdict } from './judge.js'
import { decryptedFiles } from './encrypted-image.js'
import { diskFiles, type Kind } from './kinds.js'
import { bytesOf, type Geometry, type Step } from './steps.js'

/** What scenarios run on: an image of some format, what opens it, and what it must be like. */
export interface Subject extends Geometry {
  readonly title: string
  /** Before anybody writes. */
  readonly files: readonly MemoryStore[]
  /** What it shows at first. */
  readonly disk: Buffer
  /** Clusters, or grains, that leak before anybody has written. */
  readonly leaks: number
  readonly isHeavy: boolean
  open(stores: readonly WritableStore[]): OpenDisk
  /** Throws unless the files are what a power cut or an error may leave, whatever it was. */
  check(files: readonly MemoryStore[], model: DiskModel, strictness: Strictness): Finding
  /** Throws unless they are what a clean close leaves. */
  checkClosed(files: readonly MemoryStore[], model: DiskModel): void
  /** Opens what a cut or an error left, does the steps, closes it, and throws unless it is sound. */
  recover(files: readonly MemoryStore[], steps: readonly Step[]): void
  /** The image as the next program to open it finds it. */
  reopened(files: readonly MemoryStore[]): Subject
}

export interface Finding {
  readonly leaks: number
  /** Whether it says that it was not closed cleanly. */
  readonly isDirty: boolean
}

/** A qcow2 image that `open` opens. */
export function subjectOf(kind: Kind, open: Opener): Subject {
  const { title, disk, leaks, isHeavy, sizeBytes, cluster, growsTo } = kind
  const subject: Subject = {
    ...{ title, disk, leaks, isHeavy, sizeBytes, cluster, growsTo },
    files: basesOf(kind),
    open: stores => openKind(kind, stores, open),
    check: (files, model, strictness) => checkFiles(kind, files, model, strictness),
    checkClosed: (files, model) => checkClosed(kind, files, model),
    recover: (files, steps) => recover(kind, files, open, steps),
    reopened: () => subject,
  }
  return subject
}

/** Which of a kind's files a store is. */
export const IMAGE_FILE = 0
export const DATA_FILE = 1

const basesOf = ({ image, data }: Kind): MemoryStore[] => (data ? [image, data] : [image])

const openKind = (kind: Kind, stores: readonly WritableStore[], open: Opener): OpenDisk =>
  open(diskFiles(kind, stores))

/** Whether a step still makes sense: others before it may have been left out. */
export function isPossible(step: Step, sizeBytes: number): boolean {
  if (step.kind === 'grow') return step.sizeBytes > sizeBytes
  return !('offset' in step) || step.offset + step.length <= sizeBytes
}

/** Does a step that is neither a flush nor a reopening. */
export function act({ disk }: OpenDisk, step: Step): void {
  const bytes = bytesOf(step)
  if (step.kind === 'grow') disk.grow(step.sizeBytes)
  else if (step.kind === 'zero') disk.zero(step.offset, step.length)
  else if (bytes && 'offset' in step) disk.write(bytes, 0, step.length, step.offset)
}

/** Reads back what a step wrote, and a little around it; or all of the disk. */
export function checkReads(open: OpenDisk, model: DiskModel, step?: Step): void {
  if (step && 'offset' in step) {
    const offset = Math.max(0, step.offset - 700)
    const length = Math.min(step.length + 1400, model.sizeBytes - offset)
    const actual = open.read(offset, length)
    if (actual.equals(model.read(offset, length))) return
  } else if (step) return
  model.checkNow(readDisk(open), `read back after ${step?.kind ?? 'all'}`)
}

const shown = new ReusedBuffers()
const reference = new ReusedBuffers()

/** What the files must show after a power cut or an error, whatever it was. */
export function checkFiles(
  kind: Kind,
  files: readonly MemoryStore[],
  model: DiskModel,
  strictness: Strictness,
): Verdict {
  const [store, dataStore] = files as [MemoryStore, MemoryStore | undefined]
  const { disk, snapshots } = readImage(diskFiles(kind, files), shown)
  model.check(disk, strictness)
  if (kind.isRawData && dataStore) {
    model.check(rawOf(dataStore, disk.length), strictness, 'the raw data file')
  }
  checkSnapshots(kind, snapshots)
  const verdict = judge(store)
  if (judged++ % CHECK_EACH === 0) {
    agreesWithCheck(store, verdict)
    agreesWithReference(kind, files, disk)
  }
  if (!verdict.luksHeader.equals(kind.luksHeader)) throw new Error('the LUKS header has changed')
  if (verdict.isMarkedCorrupt) throw new Error('the image is marked corrupt')
  // A dirty image asks for its counts to be rebuilt.
  const expected = verdict.isDirty && kind.isLazy ? ONLY_COUNTS : /^$/
  const corruptions = verdict.corruptions.filter(what => !expected.test(what))
  if (corruptions.length > 0) throw new Error(`the image is corrupt: ${corruptions.join('; ')}`)
  checkBitmaps(kind, verdict.bitmaps, disk)
  return verdict
}

/** The program's own check, too, looks at one in this many images; in the long form, at each. */
const CHECK_EACH = process.env.VIMGFS_TEST_LONG === '1' ? 1 : 4
let judged = 0

/** `vimgfs check` agrees with the judge. */
function agreesWithCheck(store: MemoryStore, verdict: Verdict): void {
  const { corruptions } = verdict
  const leaks = verdict.leaks - verdict.leaksBehind
  const found = checkQcow2(store)
  if (found.corruptions > 0 === corruptions.length > 0 && found.leaks === leaks) return
  const theirs = `${found.corruptions} corruptions and ${found.leaks} leaks`
  throw new Error(
    `vimgfs check finds ${theirs}, the judge ${leaks} leaks and [${corruptions.join('; ')}]`,
  )
}

/** Throws unless OpenSSL and the program decrypt the image to the same disk. */
function agreesWithReference(
  { parent, encryption }: Kind,
  files: readonly MemoryStore[],
  disk: Buffer,
): void {
  if (!encryption) return
  const [store, dataStore] = decryptedFiles(encryption, files) as [MemoryStore, MemoryStore]
  const { disk: expected } = readImage({ store, dataStore, parent }, reference)
  if (disk.equals(expected)) return
  const at = disk.findIndex((byte, i) => byte !== expected[i])
  throw new Error(`what is encrypted at ${at} of the disk, OpenSSL decrypts to something else`)
}

/** The disk as a reader of the raw data file alone sees it. */
function rawOf(dataStore: MemoryStore, sizeBytes: number): Buffer {
  const raw = Buffer.alloc(sizeBytes)
  dataStore.read(raw, 0, sizeBytes, 0)
  return raw
}

const ONLY_COUNTS = /is used \d+ times and counted \d+|COPIED is (true|false), its count/

export function checkSnapshots(kind: Kind, snapshots: readonly Buffer[]): void {
  if (snapshots.length !== kind.snapshots.length) throw new Error(`${snapshots.length} snapshots`)
  kind.snapshots.forEach((expected, index) => {
    const actual = snapshots[index] as Buffer
    if (actual.equals(expected)) return
    const at = actual.findIndex((byte, i) => byte !== expected[i])
    throw new Error(`snapshot ${index + 1} has changed at ${at}`)
  })
}

/**
 * A bitmap that is not marked as in use is true: it keeps its old bits, and has the bit of every place
 * that differs from the old disk. A bitmap that is disabled stays as it was.
 */
function checkBitmaps(kind: Kind, bitmaps: readonly Bitmap[], disk: Buffer): void {
  for (const bitmap of bitmaps) {
    const before = kind.bitmaps.find(({ name }) => name === bitmap.name)
    if (!before) throw new Error(`there is a bitmap ${bitmap.name}`)
    if (bitmap.isInUse) continue
    const step = bitmap.granularityBytes
    for (let at = 0; at < Math.min(disk.length, kind.disk.length); at += step) {
      const end = Math.min(at + step, disk.length)
      const differs = disk.compare(kind.disk, at, end, at, end) !== 0
      const isMarked = bitmap.isMarked(at)
      if (bitmap.isAuto && differs && !isMarked) {
        throw new Error(`bitmap ${bitmap.name} says that ${at} is unchanged, and is not in use`)
      }
      if (before.isMarked(at) && !isMarked) throw new Error(`bitmap ${bitmap.name} forgot ${at}`)
      if (!bitmap.isAuto && isMarked !== before.isMarked(at)) {
        throw new Error(`bitmap ${bitmap.name}, which records nothing, has changed at ${at}`)
      }
    }
  }
}

/** After a clean close: no leaks, nothing dirty, bitmaps stored. */
function checkClosed(kind: Kind, files: readonly MemoryStore[], model: DiskModel): void {
  const verdict = checkFiles(kind, files, model, 'exactly')
  if (verdict.isDirty) throw new Error('the image is closed and dirty')
  if (verdict.leaks > kind.leaks)
    throw new Error(`${verdict.leaks} clusters leak after a clean close`)
  for (const before of kind.bitmaps) {
    const bitmap = verdict.bitmaps.find(({ name }) => name === before.name)
    if (!bitmap) throw new Error(`bitmap ${before.name} is gone`)
    if (bitmap.isInUse !== before.isInUse) throw new Error(`bitmap ${before.name} is in use`)
  }
}

/**
 * Opens what a cut or an error left, writes some more, closes it, and expects it sound. The disk then
 * holds its old contents and the new writes.
 */
function recover(
  kind: Kind,
  files: readonly MemoryStore[],
  open: Opener,
  steps: readonly Step[],
): void {
  const stores = files.map(store => store.clone())
  const [, dataStore] = stores as [MemoryStore, MemoryStore | undefined]
  const model = new DiskModel(readImage(diskFiles(kind, stores), shown).disk)
  // Bytes in doubt may be in a raw data file where the tables say that they read as zeros; a write next to
  // them makes them zeros.
  const raw = new DiskModel(dataStore ? rawOf(dataStore, model.sizeBytes) : Buffer.alloc(0))
  if (kind.isRawData) raw.mayAlsoBe(model.now)
  const opened = openKind(kind, stores, open)
  goOn(opened, model, steps, step => {
    if (kind.isRawData) raw.begin(step)
  })
  const verdict = checkFiles({ ...kind, isRawData: false }, stores, model, 'exactly')
  if (kind.isRawData && dataStore) {
    raw.check(rawOf(dataStore, raw.sizeBytes), 'mixed', 'the raw data file')
  }
  if (verdict.isDirty) throw new Error('the image is closed and dirty')
}

/** Reads all of a disk, does the steps, and closes it. */
export function goOn(
  opened: OpenDisk,
  model: DiskModel,
  steps: readonly Step[],
  onBegin?: (step: Step) => void,
): void {
  checkReads(opened, model)
  for (const step of steps) {
    if (!isPossible(step, model.sizeBytes)) continue
    if (step.kind === 'flush') opened.disk.flush()
    else if (step.kind !== 'reopen') {
      model.begin(step)
      onBegin?.(step)
      act(opened, step)
      checkReads(opened, model, step)
    }
  }
  opened.disk.close()
  model.flushed()
}
