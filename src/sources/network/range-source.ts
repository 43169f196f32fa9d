/** The seam between the network thread and what knows a protocol. */

/** Why bytes could not be fetched. */
export type FetchProblem =
  /** It may succeed later. */
  | 'later'
  /** The object is another one than the one that was opened. */
  | 'changed'
  /** It will not succeed soon: refused, gone. */
  | 'refused'

export class FetchError extends Error {
  override name = 'FetchError'
  /** @param pauseMs how long the server wants to be left alone */
  constructor(
    readonly problem: FetchProblem,
    message: string,
    readonly pauseMs = 0,
  ) {
    super(message)
  }
}

/** An object of which ranges can be fetched. */
export interface RangeSource {
  readonly sizeBytes: number
  /** Tells this object from others that have the address at other times; undefined if nothing does so for sure. */
  readonly validator: string | undefined
  /** In seconds since 1970. */
  readonly modifiedSeconds: number | undefined
  /** The first bytes, as far as opening has fetched them. */
  readonly head: Buffer
  /**
   * Fetches `length` bytes at `at`, and hands them on in order as they come, never more. Rejects with FetchError: what was handed on
   * is right nevertheless.
   */
  fetch(
    at: number,
    length: number,
    onBytes: (bytes: Buffer) => void,
    signal: AbortSignal,
  ): Promise<void>
  close(): void
}
