/** The rules for an image of one file that counts no references, whatever happened to it. */
import type { CheckResult, RepairResult } from '../../src/formats/check/report.js'
import type { Store, WritableStore } from '../../src/io/store.js'
import { ReusedBuffers } from '../support/image.js'
import type { MemoryStore } from '../support/stores.js'
import type { Changes, DiskFiles, OpenDisk } from '../support/writable.js'
import { DiskModel } from './disk-model.js'
import type { KindEncryption } from './kinds.js'
import { storeCipher } from './reference-cipher.js'
import { type Finding, goOn, type Subject } from './scenario.js'
import type { Geometry, Step } from './steps.js'

/** The findings of a judge that knows the format by its description alone. */
export interface ImageVerdict {
  readonly corruptions: readonly string[]
  /** The disk by the tables and the file, decrypted and over its parent. */
  readonly disk: Buffer
  /** Bytes that no writer may change, by name. */
  readonly fixed: ReadonlyMap<string, Buffer>
  /** The use of each sector of the file; empty where every place has a fixed owner. */
  readonly uses: Uint8Array
}

/** The use of a sector of the file. */
export const USE = { nothing: 0, metadata: 1, cluster: 2, packed: 3 } as const

export interface ImageKind extends Geometry {
  readonly title: string
  readonly format: ImageFormat
  readonly file: MemoryStore
  /** The disk of the backing file. */
  readonly parent: Buffer | undefined
  readonly encryption: KindEncryption | undefined
  /** What it shows at first. */
  readonly disk: Buffer
  readonly verdict: ImageVerdict
  /** Faults that it has at first, and may keep until somebody writes. */
  readonly tolerated: RegExp
  readonly isHeavy: boolean
  /** Where QEMU finds what the image names; undefined where it does not read such an image. */
  readonly folder: string | undefined
}

/** The common parts of all kinds of a format. */
export interface ImageFormat {
  readonly name: 'qcow' | 'cow'
  open(files: DiskFiles, changes?: Changes): OpenDisk
  read(files: DiskFiles<Store>, reused?: ReusedBuffers): Buffer
  judge(store: Store, below: Pick<ImageKind, 'parent' | 'encryption'>): ImageVerdict
  /** The program's own. */
  check(store: Store): CheckResult
  repair(store: WritableStore, what: 'all'): RepairResult
}

export const NOTHING_TOLERATED = /^(?!)/

/** Returns what `format` finds in `file` before anybody has written to it. */
export function foundImage(
  format: ImageFormat,
  file: MemoryStore,
  rest: Pick<ImageKind, 'title' | 'cluster' | 'parent' | 'encryption' | 'tolerated'>,
): Omit<ImageKind, 'isHeavy' | 'folder'> {
  const verdict = format.judge(file, rest)
  const corruptions = verdict.corruptions.filter(what => !rest.tolerated.test(what))
  if (corruptions.length > 0) throw new Error(`${rest.title}: ${corruptions.join('; ')}`)
  const disk = format.read(filesOf(rest, file))
  return { ...rest, format, file, verdict, disk, sizeBytes: disk.length }
}

const shown = new ReusedBuffers()

/** An image that the writer of its format, with `changes`, opens. */
export function imageSubject(kind: ImageKind, changes: Changes = {}): Subject {
  const { title, sizeBytes, cluster, disk, isHeavy, format } = kind
  const found = (files: readonly MemoryStore[]) => asFound(kind, files[0] as MemoryStore)
  return {
    ...{ title, sizeBytes, cluster, disk, isHeavy },
    files: [kind.file],
    // Leaks that it had before are not counted.
    leaks: 0,
    open: stores => format.open(filesOf(kind, stores[0] as WritableStore), changes),
    check: (files, model, strictness) => {
      const store = files[0] as MemoryStore
      const now = format.read(filesOf(kind, store), shown)
      model.check(now, strictness)
      return judged(kind, store, now)
    },
    checkClosed: (files, model) => checkClosed(kind, files[0] as MemoryStore, model),
    recover: (files, steps) => recover(found(files), steps, changes),
    reopened: files => imageSubject(found(files), changes),
  }
}

export const filesOf = <S extends Store>(
  { parent, encryption, cluster }: Pick<ImageKind, 'parent' | 'encryption' | 'cluster'>,
  store: S,
): DiskFiles<S> => ({ store, parent, cipher: encryption && storeCipher(encryption, cluster) })

/** The image as the next program to open the file finds it. */
const asFound = (kind: ImageKind, file: MemoryStore): ImageKind => ({
  ...kind,
  ...foundImage(kind.format, file, kind),
})

/** Throws unless it is sound; it shows `disk` to the program. */
function judged(kind: ImageKind, store: MemoryStore, disk: Buffer): Finding {
  const verdict = kind.format.judge(store, kind)
  const corruptions = verdict.corruptions.filter(what => !kind.tolerated.test(what))
  if (corruptions.length > 0) throw new Error(`the image is corrupt: ${corruptions.join('; ')}`)
  if (!verdict.disk.equals(disk)) {
    const at = disk.findIndex((byte, i) => byte !== verdict.disk[i])
    throw new Error(`what is read at ${at} of the disk is not what the tables say`)
  }
  checkFixed(kind, verdict)
  if (checked++ % CHECK_EACH === 0) agreesWithCheck(kind, store, verdict)
  return { leaks: leaksOf(kind, verdict), isDirty: false }
}

function checkFixed({ verdict: before }: ImageKind, { fixed }: ImageVerdict): void {
  for (const [name, bytes] of before.fixed) {
    if (!fixed.get(name)?.equals(bytes)) throw new Error(`${name} has changed`)
  }
}

/** The program itself, too, checks and repairs one in this many images; in the long form, each. */
const CHECK_EACH = process.env.VIMGFS_TEST_LONG === '1' ? 1 : 4
let checked = 0

/** `vimgfs check` agrees with the judge; a repair leaves the disk as it is, and a check then finds nothing. */
function agreesWithCheck(kind: ImageKind, store: MemoryStore, verdict: ImageVerdict): void {
  const { check, repair, judge } = kind.format
  const { corruptions } = check(store)
  if (corruptions > 0 !== verdict.corruptions.length > 0) {
    const ours = verdict.corruptions.join('; ')
    throw new Error(`vimgfs check finds ${corruptions} corruptions, the judge [${ours}]`)
  }
  const copy = store.clone()
  const { after, changes } = repair(copy, 'all')
  // A repair keeps space that may be the data of a table that was lost.
  const isKept = changes.some(({ message }) => message.includes('a lost table reads as zeros'))
  const left = isKept ? 0 : after.leaks
  if (after.corruptions + left + after.checkErrors > 0) {
    throw new Error(
      `after a repair there are ${after.corruptions} corruptions, ${after.leaks} leaks`,
    )
  }
  const repaired = judge(copy, kind)
  if (repaired.corruptions.length > 0)
    throw new Error(`repaired: ${repaired.corruptions.join('; ')}`)
  if (!repaired.disk.equals(verdict.disk)) throw new Error('a repair has changed the disk')
  checkFixed(kind, repaired)
}

/** Counts the clusters that nothing uses now, without those that leaked before. */
function leaksOf({ cluster, verdict: before }: ImageKind, { uses }: ImageVerdict): number {
  let leaks = 0
  let run = 0
  uses.forEach((use, sector) => {
    // A compressed cluster is of no use any more after it was overwritten.
    const was = before.uses[sector]
    const wasFree = sector < before.uses.length && (was === USE.nothing || was === USE.packed)
    run = use === USE.nothing && !wasFree ? run + 512 : 0
    if (run === cluster) {
      leaks++
      run = 0
    }
  })
  return leaks
}

function checkClosed(kind: ImageKind, store: MemoryStore, model: DiskModel): void {
  const disk = kind.format.read(filesOf(kind, store), shown)
  model.check(disk, 'exactly')
  judged(kind, store, disk)
}

/** The disk then holds its old contents and the new writes. */
function recover(kind: ImageKind, steps: readonly Step[], changes: Changes): void {
  const store = kind.file.clone()
  const model = new DiskModel(kind.disk)
  goOn(kind.format.open(filesOf(kind, store), changes), model, steps)
  checkClosed(kind, store, model)
}
