/** What a VMDK image must be like, whatever happened to it. */
import { ReusedBuffers } from '../support/image.js'
import type { MemoryStore } from '../support/stores.js'
import { DiskModel } from './disk-model.js'
import { goOn, type Subject } from './scenario.js'
import type { Step } from './steps.js'
import { readVmdk, type VmdkOpener, vmdkWarnings } from './vmdk-disk.js'
import { judgeVmdk, leaksOf, type Range, type VmdkVerdict } from './vmdk-judge.js'
import type { VmdkKind } from './vmdk-kinds.js'

export interface VmdkRules {
  /**
   * Where there may be space that nothing uses, in an extent that says that it is closed:
   *  behind: after all space in use, from the time before the first flush.
   *  anywhere: since calls failed.
   */
  readonly mayLeak: 'behind' | 'anywhere'
}

/** Which differences are expected from the image as it was when it was opened. */
type Base = Pick<VmdkKind, 'files' | 'disk' | 'verdict' | 'parent'>

const shown = new ReusedBuffers()

/** A VMDK image that `open` opens. */
export function vmdkSubject(
  kind: VmdkKind,
  open: VmdkOpener,
  rules: VmdkRules = { mayLeak: 'behind' },
): Subject {
  const { files, parent } = kind
  return {
    ...kind,
    // Leaks that it had before are not counted.
    leaks: 0,
    open: stores => open({ stores, parent }),
    check: (files, model, strictness) => {
      const { disk } = readVmdk({ stores: files, parent }, shown)
      model.check(disk, strictness)
      const verdict = soundVerdict(kind, files, disk, model, rules)
      return { leaks: leaksSince(kind.verdict, verdict), isDirty: verdict.isUnclean }
    },
    checkClosed: (files, model) => {
      const { disk, warnings } = readVmdk({ stores: files, parent }, shown)
      model.check(disk, 'exactly')
      const verdict = soundVerdict(kind, files, disk, model, rules)
      checkClosed(kind, verdict, disk, warnings, rules)
    },
    recover: (files, steps) => {
      const found = asFound(kind, files)
      recover(found, files, vmdkSubject(found, open, rules), steps)
    },
    reopened: files => vmdkSubject(asFound(kind, files), open, rules),
    files,
  }
}

/** The image as the next program to open the files finds it. */
function asFound(kind: VmdkKind, files: readonly MemoryStore[]): VmdkKind {
  const verdict = judgeVmdk(files)
  return { ...kind, files, disk: readVmdk({ stores: files, parent: kind.parent }).disk, verdict }
}

/** Returns what the judge says of files that show `disk`. Throws unless they are sound. */
function soundVerdict(
  base: Base,
  files: readonly MemoryStore[],
  disk: Buffer,
  model: DiskModel,
  rules: VmdkRules,
): VmdkVerdict {
  const verdict = judgeVmdk(files)
  const { corruptions, cid, parentCid } = verdict
  if (corruptions.length > 0) throw new Error(`the image is corrupt: ${corruptions.join('; ')}`)
  checkFixed(base.verdict, verdict)
  if (parentCid !== base.verdict.parentCid) throw new Error(`the parent's CID is now ${parentCid}`)
  if (cid !== undefined && cid === base.verdict.cid && !disk.equals(base.disk)) {
    throw new Error('the disk has changed, and its CID is the same')
  }
  if (cid === NO_PARENT) throw new Error('the CID says that there is no disk')
  checkExtents(base.verdict, verdict, model, rules)
  return verdict
}

function leaksSince(before: VmdkVerdict, now: VmdkVerdict): number {
  const each = now.extents.map((extent, index) => leaksOf(extent, before.extents[index]))
  return each.reduce((sum, { between, behind }) => sum + between + behind, 0)
}

const NO_PARENT = 0xffffffff

/** Throws if bytes that no writer may change have changed. */
function checkFixed(before: VmdkVerdict, now: VmdkVerdict): void {
  for (const [name, bytes] of before.fixed) {
    if (!now.fixed.get(name)?.equals(bytes)) throw new Error(`${name} has changed`)
  }
}

/** An extent that is not in order says so in its header. */
function checkExtents(
  before: VmdkVerdict,
  now: VmdkVerdict,
  model: DiskModel,
  { mayLeak }: VmdkRules,
): void {
  now.extents.forEach((extent, index) => {
    const { file, disagreements, partial, isUnclean } = extent
    const old = before.extents[index] as VmdkVerdict['extents'][number]
    const fail = (what: string): never => {
      throw new Error(`extent ${index}, ${file}: ${what}`)
    }
    if (!isUnclean && disagreements.some(range => !has(old.disagreements, range))) {
      fail('its directories disagree, and it is clean')
    }
    const { between } = leaksOf(extent, old)
    if (!isUnclean && between > 0 && mayLeak !== 'anywhere') {
      fail(`${between} grains leak, and it is clean`)
    }
    for (const range of disagreements) {
      if (has(old.disagreements, range) || model.isInDoubt(range.offset, range.length)) continue
      fail(`its directories disagree on ${range.offset}+${range.length}, which was flushed`)
    }
    for (const range of partial) {
      if (!has(old.partial, range)) fail(`the file ends within the grain of ${range.offset}`)
    }
  })
}

const has = (ranges: readonly Range[], { offset, length }: Range): boolean =>
  ranges.some(range => range.offset === offset && range.length === length)

function checkClosed(
  base: Base,
  verdict: VmdkVerdict,
  disk: Buffer,
  warnings: readonly string[],
  { mayLeak }: VmdkRules,
): void {
  const isChanged = !disk.equals(base.disk)
  if (isChanged && verdict.isUnclean) throw new Error('it is closed, and unclean')
  if (isChanged && verdict.extents.some(({ disagreements }) => disagreements.length > 0)) {
    throw new Error('it is closed, and its directories disagree')
  }
  const leaks = leaksSince(base.verdict, verdict)
  if (leaks > 0 && mayLeak !== 'anywhere') {
    throw new Error(`${leaks} grains leak after a clean close`)
  }
  const { cid, longContentId } = verdict
  if (cid !== base.verdict.cid && longContentId !== undefined) {
    const end = (cid ?? 0).toString(16).padStart(8, '0')
    if (!longContentId.endsWith(end))
      throw new Error(`CID ${end}, long content ID ${longContentId}`)
  }
  const known = vmdkWarnings({ stores: base.files, parent: base.parent })
  const news = warnings.filter(text => !known.includes(text))
  if (news.length > 0) throw new Error(`it warns: ${news.join('; ')}`)
}

/** The disk then holds its old contents and the new writes. */
function recover(
  kind: VmdkKind,
  files: readonly MemoryStore[],
  subject: Subject,
  steps: readonly Step[],
): void {
  const stores = files.map(store => store.clone())
  const model = new DiskModel(kind.disk)
  goOn(subject.open(stores), model, steps)
  subject.checkClosed(stores, model)
}
