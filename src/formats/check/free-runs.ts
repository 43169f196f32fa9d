/** Joins neighbouring runs of unused sectors. */
export class FreeRuns {
  private from = -1
  private to = -1

  /**
   * @param bounds sectors outside are left out
   * @param least the least length of a run in sectors, within the bounds
   */
  constructor(
    private readonly bounds: { readonly from: number; readonly to: number },
    private readonly least: number,
    private readonly emit: (from: number, to: number) => void,
  ) {}

  /** Adds the sectors from `from` up to `to`. Call it in ascending order. */
  add(from: number, to: number): void {
    if (from >= to) return
    if (from !== this.to) {
      this.end()
      this.from = from
    }
    this.to = to
  }

  end(): void {
    if (this.from < 0) return
    const from = Math.max(this.from, this.bounds.from)
    const to = Math.min(this.to, this.bounds.to)
    this.from = -1
    if (to - from >= this.least) this.emit(from, to)
  }
}
