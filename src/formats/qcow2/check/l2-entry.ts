/** What an L2 entry says (QEMU docs/interop/qcow2.rst, "Cluster mapping", "Extended L2 Entries"). */
import type { CheckedImage } from './image.js'
import { COMPRESSED, COPIED, hostOffset, L2_RESERVED, ZERO_FLAG } from '../words.js'

/** Decodes one entry at a time into its own fields: there are millions of them. */
export class L2Entry {
  high = 0
  low = 0
  /** Of an extended entry: the subclusters that read as zeros, and those that have data. */
  zeroBits = 0
  dataBits = 0
  isCompressed = false
  /** There is a host cluster. */
  hasHost = false
  /** Of the host cluster, or where the compressed bytes begin; above 2^53 it is rounded. */
  at = 0
  /** Bytes there. */
  bytes = 0

  private readonly clusterBytes: number
  private readonly isExtended: boolean
  private readonly isExternal: boolean
  private readonly isV2: boolean
  /** Bits of the high half that belong to a compressed cluster's offset. */
  private readonly packedHighBits: number

  constructor(private readonly image: CheckedImage) {
    const { header } = image
    this.clusterBytes = image.clusterBytes
    this.isExtended = image.isExtended
    this.isExternal = image.isExternal
    this.isV2 = header.version === 2
    this.packedHighBits = 62 - (header.clusterBits - 8) - 32
  }

  /** @param i the entry's first word */
  decode(words: Uint32Array, i: number): void {
    const high = words[i] as number
    const low = words[i + 1] as number
    this.high = high
    this.low = low
    this.zeroBits = this.isExtended ? (words[i + 2] as number) : 0
    this.dataBits = this.isExtended ? (words[i + 3] as number) : 0
    this.isCompressed = (high & COMPRESSED) !== 0
    if (this.isCompressed) {
      this.decodePacked(high & ~(COMPRESSED | COPIED), low)
      return
    }
    this.at = hostOffset(high, low)
    this.bytes = this.clusterBytes
    // In an external data file 0 is a place like any other.
    this.hasHost = this.at !== 0 || (this.isExternal && (high & COPIED) !== 0 && !this.hasZeroFlag)
  }

  get isCopied(): boolean {
    return (this.high & COPIED) !== 0
  }

  get isAligned(): boolean {
    return this.at % this.clusterBytes === 0
  }

  get hasReservedBits(): boolean {
    return (this.high & L2_RESERVED.high) !== 0 || (this.low & L2_RESERVED.low) !== 0
  }

  /** Version 2 knows no zero flag, and no reader takes it for one there. */
  get hasImpossibleZeroFlag(): boolean {
    return this.isV2 && this.hasZeroFlag
  }

  /** A subcluster that has data and reads as zeros. */
  get contradictsItself(): boolean {
    return (this.zeroBits & this.dataBits) !== 0
  }

  /** Whether the host cluster holds bytes of the disk: else the disk reads the same without it. */
  get holdsData(): boolean {
    return this.isExtended ? this.dataBits !== 0 : !this.hasZeroFlag
  }

  /** Whether it is damaged such that nobody knows where its data are. */
  get isLost(): boolean {
    if (this.isCompressed) return !this.isExternal && !this.image.isInFile(this.at, this.bytes)
    if (!this.holdsData) return false
    if (!this.hasHost) return this.isExtended
    const isInFile = this.isExternal || this.image.isInFile(this.at, this.bytes)
    return !this.isAligned || !isInFile
  }

  private get hasZeroFlag(): boolean {
    return !this.isExtended && (this.low & ZERO_FLAG) !== 0
  }

  private decodePacked(high: number, low: number): void {
    const place = high % 2 ** this.packedHighBits
    const moreSectors = Math.floor(high / 2 ** this.packedHighBits)
    this.hasHost = true
    this.at = place * 2 ** 32 + low
    this.bytes = (moreSectors + 1) * 512 - (low % 512)
  }
}
