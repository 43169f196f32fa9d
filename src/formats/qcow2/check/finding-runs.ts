/** Joins neighbouring clusters with the same finding. */

export interface FindingRun<Kind> {
  readonly kind: Kind
  /** The first cluster. */
  readonly start: number
  readonly length: number
  /** The count in the image. */
  readonly counted: number
  readonly references: number
}

/** Returns a text such as "3 clusters from here on". */
export const clustersOf = ({ length }: FindingRun<unknown>): string =>
  length === 1 ? 'the cluster' : `${length} clusters from here on`

export class FindingRuns<Kind> {
  private start = 0
  private length = 0
  private kind: Kind | undefined
  private counted = 0
  private references = 0

  constructor(private readonly emit: (run: FindingRun<Kind>) => void) {}

  /** Adds a cluster. Call it in ascending order. */
  add(cluster: number, kind: Kind, counted: number, references: number): void {
    const goesOn =
      this.length > 0 &&
      cluster === this.start + this.length &&
      kind === this.kind &&
      counted === this.counted &&
      references === this.references
    if (goesOn) {
      this.length++
      return
    }
    this.end()
    this.start = cluster
    this.length = 1
    this.kind = kind
    this.counted = counted
    this.references = references
  }

  end(): void {
    const { kind, start, length, counted, references } = this
    if (length === 0) return
    this.length = 0
    this.emit({ kind: kind as Kind, start, length, counted, references })
  }
}
