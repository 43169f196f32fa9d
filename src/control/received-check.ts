/** The result of a check as it comes over the socket. Nothing is taken on trust. */
import { MountError } from '../errors.js'
import type { CheckResult, Finding } from '../formats/check/report.js'

const COUNTS = [
  ...['corruptions', 'leaks', 'checkErrors', 'totalClusters', 'allocatedClusters'],
  ...['fragmentedClusters', 'compressedClusters', 'imageEndOffset', 'findingsLeftOut'],
] as const
const KINDS: readonly unknown[] = ['corruption', 'leak', 'error', 'notice', 'fix']

/** Returns the format's name, and the result; undefined if the format has nothing to check. Throws MountError. */
export function receivedCheck(value: unknown): {
  readonly format: string
  readonly result: CheckResult | undefined
} {
  const { format, result } = record(value)
  if (typeof format !== 'string') throw nonsense()
  return { format, result: result === null ? undefined : checkResult(record(result)) }
}

function checkResult(given: Record<string, unknown>): CheckResult {
  const { findings } = given
  if (!Array.isArray(findings) || !COUNTS.every(name => Number.isSafeInteger(given[name]))) {
    throw nonsense()
  }
  const counts = Object.fromEntries(COUNTS.map(name => [name, given[name]]))
  return { ...counts, findings: findings.map(finding) } as unknown as CheckResult
}

function finding(value: unknown): Finding {
  const { kind, at, message } = record(value)
  if (!KINDS.includes(kind) || !Number.isSafeInteger(at) || typeof message !== 'string') {
    throw nonsense()
  }
  return { kind, at, message } as Finding
}

function record(value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null) throw nonsense()
  return value as Record<string, unknown>
}

const nonsense = () =>
  new MountError('the server of the mount gives a result that this version does not understand')
