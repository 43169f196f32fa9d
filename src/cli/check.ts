/** `vimgfs check`: whether an image's tables are sound, as `qemu-img check` says it, and repairing them. */
import { printable, UsageError } from '../errors.js'
import { jsonWithoutHidden } from '../hidden-characters.js'
import type { CheckResult, Finding, RepairKind } from '../formats/check/report.js'
import { parse, parseChoice } from './arguments.js'
import { OPTIONS } from './help/check.js'
import type { CheckRequest } from '../image/checking/check.js'
import type { Found } from '../image/checking/check-run.js'
import { type Checked, checkImage, checkMounted } from './check-image.js'
import { humanSize } from './human.js'
import { complain, print } from './output.js'
import { Progress, type ProgressOptions } from './progress.js'
import { checkCacheMode, requireWhole } from './qemu-options.js'
import { configureRemote } from './remote-options.js'

/** Those of qemu-img check. */
const EXIT = { clean: 0, failed: 1, corruptions: 2, leaks: 3, unsupported: 63, interrupted: 130 }

export async function run(args: string[]): Promise<number> {
  const { FORMAT_NAMES } = await import('../formats/registry.js')
  const { values, positionals } = parse(args, OPTIONS, 'check', ['IMAGE'])
  const [name] = positionals as [string]
  const output = parseChoice(values.output ?? 'human', '--output', OPTIONS.output.choices)
  const format =
    values.format === undefined ? undefined : parseChoice(values.format, '--format', FORMAT_NAMES)
  const repair =
    values.repair === undefined
      ? undefined
      : parseChoice(values.repair, '--repair', OPTIONS.repair.choices)
  checkCacheMode(values['source-cache'], '-T')
  const { progress: force, quiet = false, 'force-share': forceShare = false } = values
  if (forceShare && repair !== undefined) throw new UsageError('-U and --repair exclude each other')
  requireWhole(name, 'check')
  configureRemote(values)
  const shown = { force, quiet }
  const isAlone = repair !== undefined || forceShare
  const mounted = isAlone ? undefined : await checkMounted(name, shown)
  const allowPaths = values['allow-path'] ?? []
  const request = { format, repair, allowPaths, takesLocks: !forceShare }
  const checked = mounted ?? (await checkAtRest(name, request, shown))
  if (!checked.after) {
    complain(`vimgfs: ${printable(name)}: ${checked.format.name} images have no tables to check\n`)
    return EXIT.unsupported
  }
  if (output === 'json') {
    print(`${jsonWithoutHidden(JSON.stringify(fields(name, checked), null, 4))}\n`)
    complain(lines(details(checked)))
  } else if (!quiet) {
    print(lines([...details(checked), ...summary(name, checked, repair)]))
  }
  if (!checked.isStopped) return exitCode(checked.after)
  complain(`vimgfs: ${printable(name)}: interrupted: only a part of it has been checked\n`)
  return EXIT.interrupted
}

async function checkAtRest(name: string, request: CheckRequest, options: ProgressOptions) {
  const shown = new Progress(1, { ...options, isPart: true })
  const progress = (part: number) => shown.update(part)
  return checkImage(name, request, { progress }).finally(() => shown.end())
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
    format: format.name,
    'check-errors': after.checkErrors,
    ...Object.fromEntries(Object.entries(optional).filter(([, value]) => value !== 0)),
  }
}

const fixed = (before = 0, after: number): number => Math.max(0, before - after)

/** Returns the changes and the remaining findings, one line each. */
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

function summary(name: string, checked: Checked, repair: RepairKind | undefined): string[] {
  const { before, after } = checked
  const { corruptions, leaks, checkErrors } = after
  const file = printable(name)
  const { unit } = checked.format
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
  if (checkErrors > 0) return ['The check is not complete: it is unknown which space is in use.']
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
