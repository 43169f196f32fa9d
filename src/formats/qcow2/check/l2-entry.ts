/** Decodes L2 entries (QEMU docs/interop/qcow2.rst, "Cluster mapping", "Extended L2 Entries"). */
import type { Qcow2Structure } from './structure.js'
import { packedLength, packedOffset } from '../packed-entry.js'
import { COMPRESSED, COPIED, hostOffset, L2_RESERVED, ZERO_FLAG } from '../words.js'

/** Decodes one entry at a time into its fields, without a new object: there are millions of entries. */
export class L2Entry {
  high = 0
  low = 0
  /** For an extended entry: the subclusters that read as zeros, and those that have data. */
  zeroBits = 0
  dataBits = 0
  isCompressed = false
  /** Whether there is a host cluster. */
  hasHost = false
  /** The place of the host cluster, or the start of the compressed bytes; rounded above 2^53. */
  at = 0
  /** How many bytes are there. */
  bytes = 0

  private readonly clusterBytes: number
  private readonly isExtended: boolean
  private readonly isExternal: boolean
  private readonly isV2: boolean
  private readonly clusterBits: number

  constructor(private readonly image: Qcow2Structure) {
    const { header } = image
    this.clusterBytes = image.clusterBytes
    this.isExtended = image.isExtended
    this.isExternal = image.isExternal
    this.isV2 = header.version === 2
    this.clusterBits = header.clusterBits
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
      this.hasHost = true
      this.at = packedOffset(high, low, this.clusterBits)
      this.bytes = packedLength(high, low, this.clusterBits)
      return
    }
    this.at = hostOffset(high, low)
    this.bytes = this.clusterBytes
    // In an external data file 0 is an ordinary place.
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

  /** Whether it has a zero flag in version 2, which has none, and where readers ignore it. */
  get hasImpossibleZeroFlag(): boolean {
    return this.isV2 && this.hasZeroFlag
  }

  /** Whether a subcluster has both data and the zero bit. */
  get contradictsItself(): boolean {
    return (this.zeroBits & this.dataBits) !== 0
  }

  /** Whether the host cluster holds bytes of the disk. If not, the disk reads the same without it. */
  get holdsData(): boolean {
    return this.isExtended ? this.dataBits !== 0 : !this.hasZeroFlag
  }

  /** Whether its damage makes the place of its data unknown. */
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
}
