/** An image with all its layers, as plain data that can be sent to worker threads. */
import fs from 'node:fs'
import type { ExternalSnapshot, InternalSnapshot, LayerSpec } from '../../formats/format.js'
import type { Access } from '../../io/opened-file.js'
import { closeSource } from '../../sources/registry.js'
import { filesOf } from '../layer.js'
import type { LayerSnapshot } from '../snapshots/layer-snapshots.js'

export interface Chain {
  /**
   * The image first, then its backing file, and so on, `depth` of them; then the layers that only snapshots
   * of other branches stand on. Never empty.
   */
  readonly layers: readonly [LayerSpec, ...LayerSpec[]]
  readonly depth: number
  /** The snapshots of the image itself. */
  readonly snapshots: readonly InternalSnapshot[]
  /** The snapshots of the lower layers, with the layer's index, from the nearest layer down. */
  readonly layerSnapshots: readonly LayerSnapshot[]
  /** The snapshots of the disk's VM: each has frozen a disk file. */
  readonly externalSnapshots: readonly ExternalSnapshot[]
  /** Warnings for the user, one line each. */
  readonly warnings: readonly string[]
  /** Whether the first layer, with its data file, is open for writing. */
  readonly isWritable: boolean
  /** Whether recovery.ts has to run before the first write, and whether reading is enough if it fails. */
  readonly recovery?: 'required' | 'if possible' | undefined
}

export interface OpenOptions {
  /** The image's format; by default it is found by the first bytes. */
  readonly format?: string | undefined
  /** Folders besides the image's own in which it may name files. */
  readonly allowPaths?: readonly string[]
  /** The most layers, 1 to MAX_CHAIN_DEPTH.highest. */
  readonly maxDepth?: number
  /**
   * The access to the image; lower layers are only read. 'write if possible' falls back to reading, with a warning, if
   * the image is write-protected or marked corrupt. The default is reading.
   */
  readonly access?: Access | 'write if possible'
  /** Whether to read a vmdk image whose parent has changed since, with a warning. */
  readonly ignoreCid?: boolean
  /** Whether to write a vmdk image whose changes are tracked, and give the tracking up. */
  readonly dropsChangeTracking?: boolean
  /** Whether to write an image that other images need, which breaks them. */
  readonly force?: boolean
  /** Whether to take QEMU's locks. Without them, an image that others write is read with a warning. */
  readonly takesLocks?: boolean
  /**
   * Opens less than a disk needs: only the file, without reading its header; or, to describe them, the image alone or the
   * chain with its backing files, while data files stay closed.
   */
  readonly describe?: 'file' | 'image' | 'chain' | undefined
  /** Whether the disk of an image that is only described changes, so that no other image may need it. */
  readonly changesDisk?: boolean
}

export function closeChain(chain: Pick<Chain, 'layers'>): void {
  for (const layer of chain.layers) {
    for (const { fd, source } of filesOf(layer)) {
      fs.closeSync(fd)
      closeSource(source)
    }
  }
}
