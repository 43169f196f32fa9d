/** `vimgfs check`: whether an image's tables are sound, as `qemu-img check` says it, and repairing them. */
import fs from 'node:fs'
import { ImageError, printable } from '../errors.js'
import type { CheckResult, Finding } from '../formats/qcow2/check.js'
import type { RepairResult } from '../formats/qcow2/repair.js'
import type { OpenedFile } from '../io/named-file.js'
import { parse, parseChoice } from './arguments.js'
import { humanSize } from './human.js'

const OPTIONS = {
  output: { type: 'string' },
  repair: { type: 'string' },
  format: { type: 'string' },
} as const

/** Those of qemu-img check. */
const EXIT = { clean: 0, failed: 1, corruptions: 2, leaks: 3, unsupported: 63 }
const REPAIRS = ['leaks', 'all'] as const

export async function run(args: string[]): Promise<number> {
  const { FORMATS } = await import('../formats/probe.js')
  const { values, positionals } = parse(args, OPTIONS, 'check', ['IMAGE'])
  const [name] = positionals as [string]
  const output = parseChoice(values.output ?? 'human', '--output', ['human', 'json'])
  const format =
    values.format === undefined ? undefined : parseChoice(values.format, '--format', FORMATS)
  const repair =
    values.repair === undefined ? undefined : parseChoice(values.repair, '--repair', REPAIRS)
  const { openGiven } = await import('../io/named-file.js')
  const file = openGiven(name, repair === undefined ? 'read' : 'write')
  try {
    await lock(file, repair === undefined ? 'read' : 'write')
    const store = await storeOf(file)
    const { probeGiven } = await import('../formats/probe.js')
    const actual = format ?? probeGiven(store)
    if (actual !== 'qcow2') {
      const why =
        actual === 'raw'
          ? 'raw images have no tables to check'
          : `${actual} images are not checked yet`
      process.stderr.write(`vimgfs: ${printable(name)}: ${why}\n`)
      return EXIT.unsupported
    }
    const isWatched = output === 'human' && process.stderr.isTTY
    const progress = isWatched ? { progress: showProgress } : {}
    const { checkQcow2 } = await import('../formats/qcow2/check.js')
    const { repairQcow2 } = await import('../formats/qcow2/repair.js')
    const found =
      repair === undefined
        ? { after: checkQcow2(store, progress) }
        : repairQcow2(store, repair, progress)
    if (isWatched) process.stderr.write(CLEAR_LINE)
    if (output === 'json') {
      process.stdout.write(`${JSON.stringify(fields(name, found), null, 4)}\n`)
      process.stderr.write(lines(details(found)))
    } else {
      process.stdout.write(lines([...details(found), ...summary(name, found, repair)]))
    }
    return exitCode(found.after)
  } finally {
    fs.closeSync(file.fd)
  }
}

/** The result of a check, or of a repair with the check after it. */
type Found = Pick<RepairResult, 'after'> & Partial<RepairResult>

async function lock({ fd, path }: OpenedFile, access: 'read' | 'write'): Promise<void> {
  const { lockImage } = await import('../io/locks.js')
  try {
    const warning = lockImage(fd, path, access)
    if (warning !== undefined) process.stderr.write(`vimgfs: ${printable(warning)}\n`)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    // Ways out that lockImage knows of are those of a mount.
    const hint = 'check it once that has ended'
    throw new ImageError(error.code, error.message, { path, hint }, { cause: error })
  }
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
function fields(filename: string, { before, after }: Found): Record<string, string | number> {
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
    format: 'qcow2',
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

function summary(name: string, { before, after }: Found, repair: string | undefined): string[] {
  const { corruptions, leaks, checkErrors } = after
  const file = printable(name)
  const fixes = before && [
    count(fixed(before.corruptions, corruptions), 'corruption'),
    count(fixed(before.leaks, leaks), 'leaked cluster'),
  ]
  const found = [
    count(corruptions, 'corruption'),
    count(leaks, 'leaked cluster'),
    count(checkErrors, 'error of the check', 'errors of the check'),
  ]
  return [
    ...(fixes && listed(fixes) !== '' ? [`${file}: repaired: ${listed(fixes)}`] : []),
    `${file}: ${listed(found) || 'no errors found'}`,
    ...advice(after, repair, file),
    ...allocation(after),
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

function allocation(result: CheckResult): string[] {
  const { totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = result
  if (totalClusters === 0 || allocatedClusters === 0) return []
  const percent = (part: number, whole: number) => `${((part / whole) * 100).toFixed(2)} %`
  return [
    `${allocatedClusters} of ${totalClusters} clusters allocated (${percent(allocatedClusters, totalClusters)}), ${percent(fragmentedClusters, allocatedClusters)} fragmented, ${percent(compressedClusters, allocatedClusters)} compressed`,
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
