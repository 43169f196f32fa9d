/** The findings of a check of a qcow2 image. */
import { CheckReport } from '../../check/report.js'

export class Qcow2Report extends CheckReport {
  /** How many of the corruptions are COPIED flags that do not agree with their counts. */
  wrongFlags = 0

  wrongFlag(at: number, message: () => string, times = 1): void {
    this.wrongFlags += times
    this.corruption(at, message, times)
  }
}
