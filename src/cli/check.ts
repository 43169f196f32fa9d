/** `vimgfs check`: whether an image's tables are sound, as `qemu-img check` says it, and repairing them. */
import fs from 'node:fs'
import { ImageError, printable } from '../errors.js'
import type { Chain } from '../formats/chain.js'
import type { FileSpec } from '../formats/layer.js'
import type { CheckOptions, CheckResult, Finding, RepairResult } from '../formats/check-report.js'
import type { Format } from '../formats/probe.js'
import type { VmdkSpec } from '../formats/vmdk/image.js'
import type { RepairedExtent } from '../formats/vmdk/repair.js'
import type { Access, OpenedFile } from '../io/named-file.js'
import type { WritableStore } from '../io/store.js'
import { parse, parseChoice } from './arguments.js'
import { humanSize } from './human.js'

const OPTIONS = {
  output: { type: 'string' },
  repair: { type: 'string' },
  format: { type: 'string' },
  'allow-path': { type: 'string', multiple: true },
} as const

/** Those of qemu-img check. */
const EXIT = { clean: 0, failed: 1, corruptions: 2, leaks: 3, unsupported: 63 }
const REPAIRS = ['leaks', 'all'] as const
type RepairKind = (typeof REPAIRS)[number]

export async function run(args: string[]): Promise<number> {
  const { FORMATS } = await import('../formats/probe.js')
  const { values, positionals } = parse(args, OPTIONS, 'check', ['IMAGE'])
  const [name] = positionals as [string]
  const output = parseChoice(values.output ?? 'human', '--output', ['human', 'json'])
  const format =
    values.format === undefined ? undefined : parseChoice(values.format, '--format', FORMATS)
  const repair =
    values.repair === undefined ? undefined : parseChoice(values.repair, '--repair', REPAIRS)
  const isWatched = output === 'human' && process.stderr.isTTY
  const options = isWatched ? { progress: showProgress } : {}
  const allowPaths = values['allow-path'] ?? []
  const checked = await check(name, { format, repair, allowPaths }, options)
  if (isWatched) process.stderr.write(CLEAR_LINE)
  if (!checked) {
    process.stderr.write(`vimgfs: ${printable(name)}: raw images have no tables to check\n`)
    return EXIT.unsupported
  }
  if (output === 'json') {
    process.stdout.write(`${JSON.stringify(fields(name, checked), null, 4)}\n`)
    process.stderr.write(lines(details(checked)))
  } else {
    process.stdout.write(lines([...details(checked), ...summary(name, checked, repair)]))
  }
  return exitCode(checked.after)
}

/** The result of a check, or of a repair with the check after it. */
type Found = Pick<RepairResult, 'after'> & Partial<RepairResult>
type Checked = Found & { readonly format: 'qcow2' | 'vmdk' }

interface Request {
  readonly format: Format | undefined
  readonly repair: RepairKind | undefined
  /** Folders besides the image's own where its extents may be. */
  readonly allowPaths: readonly string[]
}

/** Undefined where the format has nothing to check. */
async function check(
  name: string,
  request: Request,
  options: CheckOptions,
): Promise<Checked | undefined> {
  const { format, repair } = request
  const { openGiven } = await import('../io/named-file.js')
  const { probeGiven } = await import('../formats/probe.js')
  const access = repair === undefined ? 'read' : 'write'
  let actual = format
  if (actual === undefined) {
    const file = openGiven(name)
    try {
      actual = probeGiven(await storeOf(file))
    } finally {
      fs.closeSync(file.fd)
    }
  }
  if (actual === 'raw') return undefined
  if (actual === 'vmdk') return checkVmdkImage(name, request, options)
  const file = openGiven(name, access)
  try {
    await lock(file, access)
    const store = await storeOf(file)
    const { checkQcow2 } = await import('../formats/qcow2/check.js')
    const { repairQcow2 } = await import('../formats/qcow2/repair.js')
    return repair === undefined
      ? { format: 'qcow2', after: checkQcow2(store, options) }
      : { format: 'qcow2', ...repairQcow2(store, repair, options) }
  } finally {
    fs.closeSync(file.fd)
  }
}

async function checkVmdkImage(
  name: string,
  { repair, allowPaths }: Request,
  options: CheckOptions,
): Promise<Checked> {
  const { closeChain } = await import('../formats/chain.js')
  const { checkVmdk, warningsOf } = await import('../formats/vmdk/check.js')
  const { repairVmdk } = await import('../formats/vmdk/repair.js')
  const { chain, obstacle } = await openVmdk(name, repair, allowPaths)
  try {
    const spec = chain.layers[0].vmdk as VmdkSpec
    // The check says these, too.
    const found = spec.extents.flatMap(({ file, layout }) =>
      warningsOf(layout).map(warning => `${file?.path}: ${warning}`),
    )
    for (const warning of chain.warnings.filter(each => !found.includes(each))) {
      process.stderr.write(`vimgfs: ${printable(warning)}\n`)
    }
    const extents = await extentsOf(spec, obstacle)
    return repair === undefined
      ? { format: 'vmdk', after: checkVmdk(extents, options) }
      : { format: 'vmdk', ...repairVmdk(extents, repair, options) }
  } finally {
    closeChain(chain)
  }
}

/** Opens the image with its extents alone; for reading, with the reason, where it cannot be written. */
async function openVmdk(
  name: string,
  repair: RepairKind | undefined,
  allowPaths: readonly string[],
): Promise<{ chain: Chain; obstacle?: string }> {
  const { openChain } = await import('../formats/chain.js')
  const { WriteProtected } = await import('../io/named-file.js')
  const open = (access: Access) =>
    openChain(name, {
      format: 'vmdk',
      describe: 'image',
      takesLocks: true,
      // What the disk reads as does not change, so what tracks its changes stays true.
      dropsChangeTracking: true,
      access,
      allowPaths,
    })
  try {
    if (repair === undefined) return { chain: open('read') }
    try {
      return { chain: open('write') }
    } catch (error) {
      if (!(error instanceof WriteProtected)) throw error
      return { chain: open('read'), obstacle: error.message }
    }
  } catch (error) {
    if (!(error instanceof ImageError) || error.code !== 'REFUSED') throw error
    throw onceItHasEnded(error)
  }
}

async function extentsOf(
  { extents }: VmdkSpec,
  obstacle: string | undefined,
): Promise<RepairedExtent[]> {
  const { WritableFileStore } = await import('../io/store.js')
  const stores = new Map<number, WritableStore>()
  const storeOf = ({ path, fd, sizeBytes }: FileSpec): WritableStore => {
    const store =
      stores.get(fd) ?? new WritableFileStore(path, fd, BigInt64Array.of(BigInt(sizeBytes)))
    stores.set(fd, store)
    return store
  }
  return extents.map(({ file, layout, sizeBytes, isWritable }) => ({
    sizeBytes,
    layout,
    store: file && storeOf(file),
    obstacle: obstacle ?? (isWritable ? undefined : 'its descriptor says that it is not written'),
    isDevice: file !== undefined && fs.fstatSync(file.fd).isBlockDevice(),
  }))
}

async function lock({ fd, path }: OpenedFile, access: Access): Promise<void> {
  const { lockImage } = await import('../io/locks.js')
  try {
    const warning = lockImage(fd, path, access)
    if (warning !== undefined) process.stderr.write(`vimgfs: ${printable(warning)}\n`)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    throw onceItHasEnded(error)
  }
}

/** Ways out that who has found an image in use knows of are those of a mount. */
function onceItHasEnded(error: ImageError): ImageError {
  if (!error.message.startsWith('it is in use')) return error
  const context = { ...error.context, hint: 'check it once that has ended' }
  return new ImageError(error.code, error.message, context, { cause: error })
}

async function storeOf({ path, fd, stat }: OpenedFile) {
  const { WritableFileStore } = await import('../io/store.js')
  const { sizeOf } = await import('../io/libc.js')
  const sizeBytes = stat.isBlockDevice() ? BigInt(sizeOf(fd)) : stat.size
  return new WritableFileStore(path, fd, BigInt64Array.of(sizeBytes))
}

function exitCode({ checkErrors, corruptions, leaks }: CheckResult): number {
  if (checkErrors > 0) return EXIT.failed
  if (corruptions > 0) return EXIT.corruptions
  return leaks > 0 ? EXIT.leaks : EXIT.clean
}

/** The fields of qemu-img check; like there, one that is 0 is left out, but for the first three. */
function fields(
  filename: string,
  { format, before, after }: Checked,
): Record<string, string | number> {
  const optional = {
    'image-end-offset': after.imageEndOffset,
    'total-clusters': after.totalClusters,
    'allocated-clusters': after.allocatedClusters,
    'fragmented-clusters': after.fragmentedClusters,
    'compressed-clusters': after.compressedClusters,
    corruptions: after.corruptions,
    leaks: after.leaks,
    'corruptions-fixed': fixed(before?.corruptions, after.corruptions),
    'leaks-fixed': fixed(before?.leaks, after.leaks),
  }
  return {
    filename,
    format,
    'check-errors': after.checkErrors,
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== 0)),
  }
}

const fixed = (before = 0, after: number): number => Math.max(0, before - after)

/** What was changed and what is still wrong, a line each. */
function details({ changes = [], changesLeftOut = 0, after }: Found): string[] {
  const more = (count: number) => (count > 0 ? [`… and ${count} more`] : [])
  return [
    ...changes.map(line),
    ...more(changesLeftOut),
    ...after.findings.map(line),
    ...more(after.findingsLeftOut),
  ]
}

const KINDS: Record<Finding['kind'], string> = {
  corruption: 'corruption',
  leak: 'leak',
  error: 'not done',
  notice: 'notice',
  fix: 'repaired',
}

const line = ({ kind, at, message }: Finding): string =>
  `${KINDS[kind]} at ${at}: ${printable(message)}`

/** What the disk is divided into. */
const UNITS = { qcow2: 'cluster', vmdk: 'grain' }

function summary(name: string, checked: Checked, repair: RepairKind | undefined): string[] {
  const { before, after } = checked
  const { corruptions, leaks, checkErrors } = after
  const file = printable(name)
  const unit = UNITS[checked.format]
  const fixes = before && [
    count(fixed(before.corruptions, corruptions), 'corruption'),
    count(fixed(before.leaks, leaks), `leaked ${unit}`),
  ]
  const found = [
    count(corruptions, 'corruption'),
    count(leaks, `leaked ${unit}`),
    count(checkErrors, 'error of the check', 'errors of the check'),
  ]
  return [
    ...(fixes && listed(fixes) !== '' ? [`${file}: repaired: ${listed(fixes)}`] : []),
    `${file}: ${listed(found) || 'no errors found'}`,
    ...advice(after, repair, file),
    ...allocation(after, unit),
  ]
}

function advice({ corruptions, leaks, checkErrors }: CheckResult, repair = '', file: string) {
  if (checkErrors > 0)
    return ['The check is not complete: what is used and what is not is unknown.']
  if (corruptions > 0 && repair !== 'all') {
    return [`Data may be at stake. Copy it, then: vimgfs check --repair all ${file}`]
  }
  if (corruptions > 0) return ['The rest cannot be repaired: save the data, or restore a copy.']
  if (leaks > 0 && repair === '') {
    return [`Leaks waste space and do no harm: vimgfs check --repair leaks ${file}`]
  }
  return []
}

function allocation(result: CheckResult, unit: string): string[] {
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = result
  if (totalClusters === 0 || allocatedClusters === 0) return []
  const percent = (part: number, whole: number) => `${((part / whole) * 100).toFixed(2)} %`
  return [
    `${allocatedClusters} of ${totalClusters} ${unit}s allocated (${percent(allocatedClusters, totalClusters)}), ${percent(fragmentedClusters, allocatedClusters)} fragmented, ${percent(compressedClusters, allocatedClusters)} compressed`,
    `The image ends at ${result.imageEndOffset} (${humanSize(result.imageEndOffset)})`,
  ]
}

const listed = (parts: string[]): string => parts.filter(part => part !== '').join(', ')

const count = (number: number, name: string, names = `${name}s`): string =>
  number === 0 ? '' : `${number} ${number === 1 ? name : names}`

const lines = (all: readonly string[]): string => all.map(text => `${text}\n`).join('')

const CLEAR_LINE = '\r\x1b[K'

function showProgress(part: number): void {
  process.stderr.write(`${CLEAR_LINE}${Math.floor(part * 100)} %`)
}
