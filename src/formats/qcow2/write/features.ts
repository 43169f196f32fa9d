/**
 * The feature bits of an image while it is written (QEMU docs/interop/qcow2.rst, "Header").
 *
 *  (1) The autoclear bits of unknown features, whose promises a write breaks, are off before the first write.
 *  (2) With lazy refcounts, the dirty bit is set from the first write until the image is closed: a program that sees it
 *      computes the counts anew before it writes.
 */
import { orEndWriting } from '../../../errors.js'
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from '../header.js'
import { writeFeatures } from '../header-update.js'
import type { Qcow2WriterParts } from './parts.js'

export class Features {
  constructor(private readonly parts: Pick<Qcow2WriterParts, 'header' | 'store' | 'memory'>) {}

  /** Writes and syncs the bits for an image that is about to be written, if they are others than before. */
  open(): void {
    const { header } = this.parts
    if (header.version === 2) return
    if (this.keptAutoclear === header.autoclear && !this.isLazy) return
    this.write(true)
    this.sync()
  }

  /** Clears the dirty bit. Everything else is on the disk. */
  close(): void {
    if (this.parts.header.version === 2 || !this.isLazy) return
    this.write(false)
    this.sync()
  }

  /** Writes all feature bits. The image has version 3. */
  write(isOpen: boolean): void {
    const { header, store } = this.parts
    const { incompatible, compatible } = header
    writeFeatures(store, {
      incompatible: isOpen && this.isLazy ? incompatible | INCOMPATIBLE.dirty : incompatible,
      compatible,
      autoclear: this.keptAutoclear,
    })
  }

  private get isLazy(): boolean {
    return (this.parts.header.compatible & COMPATIBLE.lazyRefcounts) !== 0n
  }

  /** The autoclear bits to keep. Rule (1). */
  private get keptAutoclear(): bigint {
    const { header, memory } = this.parts
    const kept = AUTOCLEAR.rawExternalData | (memory.bitmaps.areLost ? 0n : AUTOCLEAR.bitmaps)
    return header.autoclear & kept
  }

  private sync(): void {
    orEndWriting(() => this.parts.store.sync())
  }
}
