/** The seam for notes in an image about the layer below, which other programs neither read nor lose. The image is not in use. */
import type { Store, WritableStore } from '../io/store.js'

/** @typeParam S the format's header */
export interface BaseNote<S> {
  /** Returns undefined if there is none. Throws SystemError. */
  read(spec: S, store: Store): Buffer | undefined
  /** Replaces the note, and syncs it. Throws ImageError if there is no room; SystemError. */
  write(spec: S, store: WritableStore, note: Buffer): void
}
