/**
 * Compares the reference counts of an image with its references, during the walk of its tables before the first write. If a
 * count is lower than the references to its cluster, a writer may hand the cluster out again: at once if the count is 0,
 * otherwise when the first of the references is freed.
 *
 * Each reference is subtracted from the count, so no second walk is needed. References that the walk leaves out do no harm:
 * the remaining count is only too high.
 */
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { getCount } from './refcount-bits.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import { blockOffset, wordBuffer } from './words.js'

/** The clusters of one page, a power of two. A page takes 4 KiB. */
const PAGE_CLUSTERS = 2048
/** The most pages that are kept: 64 MiB. For clusters beyond them, only counts of 0 are noticed. */
const MAX_PAGES = 2 ** 14

/** The rest of a count is in the low bits of a cell. Nothing is subtracted from this value, which means "so many or more". */
const MANY = 0x3fff
/** Set if the cluster has a reference. */
const REFERRED = 0x4000
/** Set if an entry claims the cluster for itself alone, by its COPIED flag. */
const OWNED = 0x8000

export class CountLedger {
  private readonly pages = new Map<number, Uint16Array>()
  private page: Uint16Array = new Uint16Array(0)
  private current = -1
  private readonly clusterBytes: number
  private readonly perBlock: number
  private readonly entry = Buffer.alloc(8)

  /** @param areCountsRight true assumes that the counts are high enough, and does not read them */
  constructor(
    private readonly store: Store,
    private readonly header: Qcow2Header,
    private readonly options: { readonly areCountsRight: boolean } = { areCountsRight: false },
  ) {
    this.clusterBytes = clusterBytes(header)
    this.perBlock = (this.clusterBytes * 8) / 2 ** header.refcountOrder
  }

  /**
   * Notes that `cluster` has `times` more references. Throws ImageError if its count is lower than the references so far, or if
   * one reference claims the cluster for itself alone and another one exists: a write in place would change what the other one
   * shows.
   *
   * @param isOwned whether the reference has the COPIED flag and belongs to the active disk
   */
  refer(cluster: number, times: number, isOwned: boolean): void {
    const index = Math.floor(cluster / PAGE_CLUSTERS)
    if (index !== this.current) this.turnTo(index)
    const at = cluster - index * PAGE_CLUSTERS
    const cell = this.page[at] as number
    const left = cell & MANY
    if (left < times && left !== MANY) {
      throw this.damage(
        `the reference count of the cluster at ${cluster * this.clusterBytes} is lower than the number of its references`,
      )
    }
    if (isOwned ? times > 1 || (cell & REFERRED) !== 0 : (cell & OWNED) !== 0) {
      throw this.damage(
        `the cluster at ${cluster * this.clusterBytes} is shared, and an entry claims it for the disk alone`,
      )
    }
    const rest = left === MANY ? MANY : left - times
    this.page[at] = rest | REFERRED | (isOwned ? OWNED : cell & OWNED)
  }

  /** Does the same for `clusters` clusters in a row. */
  referRow(first: number, clusters: number, times: number, isOwned: boolean): void {
    const added = REFERRED | (isOwned ? OWNED : 0)
    for (let cluster = first; cluster < first + clusters; ) {
      // This turns to the page, and reports damage.
      this.refer(cluster, times, isOwned)
      const start = cluster - this.current * PAGE_CLUSTERS
      const end = Math.min(start + first + clusters - cluster, PAGE_CLUSTERS)
      const { page } = this
      let at = start + 1
      for (; at < end; at++) {
        const cell = page[at] as number
        const left = cell & MANY
        // The usual case: enough references are left, and nobody claims the cluster. All else is for `refer`.
        if (left < times || (cell & OWNED) !== 0 || (isOwned && (times > 1 || cell !== left))) break
        page[at] = (left === MANY ? MANY : left - times) | added
      }
      cluster += at - start
    }
  }

  private turnTo(index: number): void {
    let page = this.pages.get(index)
    if (!page) {
      page = this.load(index)
      if (this.pages.size < MAX_PAGES) this.pages.set(index, page)
    }
    this.page = page
    this.current = index
  }

  private load(index: number): Uint16Array {
    const page = new Uint16Array(PAGE_CLUSTERS)
    if (this.options.areCountsRight) return page.fill(MANY)
    const clusters = Math.min(PAGE_CLUSTERS, this.perBlock)
    const counts = wordBuffer(Math.ceil((clusters * 2 ** this.header.refcountOrder) / 8))
    const words = new Uint16Array(counts.buffer, 0, counts.length >> 1)
    for (let done = 0; done < PAGE_CLUSTERS; done += clusters) {
      const first = index * PAGE_CLUSTERS + done
      const block = this.blockAt(Math.floor(first / this.perBlock))
      if (block === 0) continue
      const inBlock = first % this.perBlock
      const at = block + (inBlock * 2 ** this.header.refcountOrder) / 8
      const got = at < this.store.sizeBytes ? this.store.read(counts, 0, counts.length, at) : 0
      counts.fill(0, got)
      if (this.header.refcountOrder === 4) {
        counts.swap16()
        for (let i = 0; i < clusters; i++) {
          page[done + i] = Math.min(MANY, words[i] as number)
        }
        continue
      }
      for (let i = 0; i < clusters; i++) {
        page[done + i] = Math.min(MANY, getCount(counts, i, this.header.refcountOrder))
      }
    }
    return page
  }

  /** Returns the place of a refcount block in the file; 0 if there is none. */
  private blockAt(index: number): number {
    const { refcountTableOffset, refcountTableClusters } = this.header
    if (index * 8 >= refcountTableClusters * this.clusterBytes) return 0
    this.entry.fill(0)
    this.store.read(this.entry, 0, 8, refcountTableOffset + index * 8)
    const block = blockOffset(this.entry.readUInt32BE(0), this.entry.readUInt32BE(4))
    return block % this.clusterBytes === 0 && Number.isSafeInteger(block) ? block : 0
  }

  /** Returns the error. Its message includes the way out, because the log and the mount's status show only the message. */
  private damage(message: string): ImageError {
    const what = `${message}: writing would destroy data; repair it with vimgfs check --repair all`
    return new ImageError('CORRUPT', what, { path: this.store.path, endsWriting: true })
  }
}
