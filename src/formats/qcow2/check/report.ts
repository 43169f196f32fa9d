/** What a check of a qcow2 image finds. */
import { Report as CheckReport } from '../../check/report.js'

export class Report extends CheckReport {
  /** Of the corruptions, those that are a COPIED flag which does not agree with its count. */
  wrongFlags = 0

  wrongFlag(at: number, message: () => string, times = 1): void {
    this.wrongFlags += times
    this.corruption(at, message, times)
  }
}
