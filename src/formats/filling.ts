/** Fills ranges of new files. */
import { ImageError } from '../errors.js'
import type { WritableStore } from '../io/store.js'

const PIECE_BYTES = 2 ** 20

/** Writes zeros to a range. */
export function fillZeros(store: WritableStore, at: number, length: number): void {
  const zeros = Buffer.alloc(Math.min(length, PIECE_BYTES))
  for (let done = 0; done < length; done += zeros.length) {
    store.write(zeros, 0, Math.min(zeros.length, length - done), at + done)
  }
}

/**
 * Gives a range of a new file its space: with falloc the file system reserves it, with full it is written, and otherwise it
 * stays a hole. Throws ImageError where the file system cannot reserve space.
 */
export function reserveSpace(
  store: WritableStore,
  at: number,
  length: number,
  mode: 'off' | 'metadata' | 'falloc' | 'full',
): void {
  if (length === 0) return
  if (mode === 'full') fillZeros(store, at, length)
  if (mode !== 'falloc' || store.allocate?.(at, length)) return
  throw new ImageError('UNSUPPORTED', 'its file system cannot reserve space', {
    path: store.path,
    hint: 'use preallocation=full',
  })
}
