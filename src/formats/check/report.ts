/** What a check finds: totals that are counted as `qemu-img check` counts them, and a bounded list. */

/**
 * A corruption can cost data, a leak costs space. An error kept a part from being checked, or a repair
 * from being made. A notice is no fault. A fix is a change that a repair made.
 */
export type FindingKind = 'corruption' | 'leak' | 'error' | 'notice' | 'fix'

export interface Finding {
  readonly kind: FindingKind
  /** Where in the file it is, in bytes. */
  readonly at: number
  readonly message: string
}

export interface CheckResult {
  readonly corruptions: number
  readonly leaks: number
  readonly checkErrors: number
  /** Clusters of the disk. */
  readonly totalClusters: number
  /** Clusters of the disk that have a host cluster. */
  readonly allocatedClusters: number
  /** Of those, the ones that do not follow their neighbour in the file. */
  readonly fragmentedClusters: number
  readonly compressedClusters: number
  /** The end of the last host cluster in use, in bytes. */
  readonly imageEndOffset: number
  /** In the order they were met; MAX_FINDINGS at most. */
  readonly findings: readonly Finding[]
  /** How many more there were. */
  readonly findingsLeftOut: number
}

export interface RepairResult {
  readonly before: CheckResult
  readonly after: CheckResult
  /** What was changed, of kind `fix`, and what could not be, of kind `error`. */
  readonly changes: readonly Finding[]
  readonly changesLeftOut: number
}

export interface CheckOptions {
  /** Told how much is done, 0 to 1. */
  readonly progress?: (part: number) => void
}

export const MAX_FINDINGS = 1000

export class Report implements CheckResult {
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

  /** @param times how often it counts: a table that two others name is met twice */
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

  /** Adds to the list alone. */
  note(kind: FindingKind, at: number, message: () => string): void {
    if (this.findings.length < MAX_FINDINGS) this.findings.push({ kind, at, message: message() })
    else this.findingsLeftOut++
  }
}
