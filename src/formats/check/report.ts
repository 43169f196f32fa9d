/** The findings of a check: totals as `qemu-img check` counts them, and a bounded list. */

/**
 * A corruption can cost data, a leak costs space. An error prevented a part of the check, or a repair. A notice is not a fault.
 * A fix is a change that a repair has made.
 */
export type FindingKind = 'corruption' | 'leak' | 'error' | 'notice' | 'fix'

export interface Finding {
  readonly kind: FindingKind
  /** Its place in the file, in bytes. */
  readonly at: number
  readonly message: string
}

export interface CheckResult {
  readonly corruptions: number
  readonly leaks: number
  readonly checkErrors: number
  /** The number of clusters of the disk. */
  readonly totalClusters: number
  /** How many clusters of the disk have a host cluster. */
  readonly allocatedClusters: number
  /** How many of them do not follow their neighbour in the file. */
  readonly fragmentedClusters: number
  readonly compressedClusters: number
  /** The end of the last host cluster in use, in bytes. */
  readonly imageEndOffset: number
  /** In the order in which they were found; at most MAX_FINDINGS. */
  readonly findings: readonly Finding[]
  /** How many more findings there were. */
  readonly findingsLeftOut: number
}

export type RepairKind = 'leaks' | 'all'

export interface RepairResult {
  readonly before: CheckResult
  readonly after: CheckResult
  /** The changes, of kind `fix`, and the failures to change something, of kind `error`. */
  readonly changes: readonly Finding[]
  readonly changesLeftOut: number
}

export interface CheckOptions {
  /** Called with the part that is done, 0 to 1. */
  readonly progress?: (part: number) => void
  /** Is given the report that the check will fill, so that what it holds can be told if `progress` throws. */
  readonly began?: (report: CheckResult) => void
}

export const MAX_FINDINGS = 1000

export class CheckReport implements CheckResult {
  corruptions = 0
  leaks = 0
  checkErrors = 0
  totalClusters = 0
  allocatedClusters = 0
  fragmentedClusters = 0
  compressedClusters = 0
  imageEndOffset = 0
  readonly findings: Finding[] = []
  findingsLeftOut = 0

  /** @param times how often it counts: a table that two others name is found twice */
  corruption(at: number, message: () => string, times = 1): void {
    this.corruptions += times
    this.note('corruption', at, message)
  }

  leak(at: number, message: () => string, times = 1): void {
    this.leaks += times
    this.note('leak', at, message)
  }

  error(at: number, message: () => string, times = 1): void {
    this.checkErrors += times
    this.note('error', at, message)
  }

  /** Adds a finding to the list, but not to the totals. */
  note(kind: FindingKind, at: number, message: () => string): void {
    if (this.findings.length < MAX_FINDINGS) this.findings.push({ kind, at, message: message() })
    else this.findingsLeftOut++
  }
}

/** Returns the result of a repair. Calls `checkAgain` if something has changed. */
export function repairResult(
  before: CheckResult,
  changes: CheckReport,
  checkAgain: () => CheckResult,
): RepairResult {
  const isChanged = changes.findings.some(({ kind }) => kind === 'fix')
  const after = isChanged ? checkAgain() : before
  return { before, after, changes: changes.findings, changesLeftOut: changes.findingsLeftOut }
}
