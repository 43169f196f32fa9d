/** An image with all that it stands on, as plain data that is handed to worker threads. */
import fs from 'node:fs'
import type { ExternalSnapshot, InternalSnapshot, LayerSpec } from '../formats/format.js'
import type { Access } from '../io/named-file.js'
import { filesOf } from './layer.js'
import type { LayerSnapshot } from './layer-snapshots.js'

export interface Chain {
  /**
   * The image first, then its backing file, and so on, `depth` of them; then the layers that only snapshots
   * of other branches stand on. Never empty.
   */
  readonly layers: readonly [LayerSpec, ...LayerSpec[]]
  readonly depth: number
  /** The snapshots of the image itself. */
  readonly snapshots: readonly InternalSnapshot[]
  /** Those of the layers that it stands on, with the layer's place, from the nearest layer down. */
  readonly layerSnapshots: readonly LayerSnapshot[]
  /** Those of the disk's machine: each is a disk file, frozen since. */
  readonly externalSnapshots: readonly ExternalSnapshot[]
  /** What the user should know, a line each. */
  readonly warnings: readonly string[]
  /** Whether the first layer, with its data file, is open for writing. */
  readonly isWritable: boolean
  /** Whether recovery.ts has to run before the first write, and whether reading will do if it fails. */
  readonly recovery?: 'required' | 'if possible' | undefined
}

export interface OpenOptions {
  /** The image's format; found by its first bytes where it is not given. */
  readonly format?: string | undefined
  /** Folders besides the image's own that it may name files in. */
  readonly allowPaths?: readonly string[]
  /** Layers at most, 1 to MAX_CHAIN_DEPTH.highest. */
  readonly maxDepth?: number
  /**
   * What the image is opened for; all that it stands on is read only. 'write if possible' falls back to
   * reading, with a warning, where the image is write-protected or marked corrupt. Reading is the default.
   */
  readonly access?: Access | 'write if possible'
  /** Whether a vmdk image is read whose parent has changed since; with a warning. */
  readonly ignoreCid?: boolean
  /** Whether a vmdk image whose changes are tracked gives that up to be written. */
  readonly dropsChangeTracking?: boolean
  /** Whether an image is written that others stand on, which breaks them. */
  readonly force?: boolean
  /** Whether QEMU's locks are taken; without, an image that others write is read with a warning. */
  readonly takesLocks?: boolean
  /**
   * Opens less than a disk needs: the file alone, whose header is not read; the image alone, or the chain with its
   * backing files, to describe it: data files stay closed.
   */
  readonly describe?: 'file' | 'image' | 'chain' | undefined
}

export function closeChain(chain: Pick<Chain, 'layers'>): void {
  for (const layer of chain.layers) {
    for (const { fd } of filesOf(layer)) fs.closeSync(fd)
  }
}
