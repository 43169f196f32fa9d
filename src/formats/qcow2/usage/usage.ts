/**
 * Tells where the space of a qcow2 image went, and what each snapshot refers to and alone holds (QEMU docs/interop/qcow2.rst).
 * A snapshot alone holds as much as deleting it gives back: all clusters whose reference counts fall to 0 when all its
 * references are taken away, and what the snapshot table loses.
 */
import { ImageError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'
import { DiskMapBuilder } from '../../disk-map.js'
import type { Reach, SpaceUsage, UsageOptions, UsedSnapshot } from '../../usage.js'
import { bitmapClusters } from '../check/bitmap-clusters.js'
import { walkL1 } from '../check/l1-walk.js'
import { RefcountBlocks } from '../check/refcount-blocks.js'
import { type L1Table, Qcow2Structure } from '../check/structure.js'
import { walkSnapshotTable } from '../snapshots.js'
import { nextSnapshotEntry } from '../snapshot-entry.js'
import { hostOffset } from '../words.js'
import { HOLDS, Owners } from './owners.js'
import { ROW, type RowKind, TableRows } from './rows.js'

const DISK = 1
const HOLDS_OF = [HOLDS.data, HOLDS.zero, HOLDS.packed, 0] as const

/** An L1 table with its owner. */
interface Owned {
  readonly owner: number
  readonly table: L1Table
}

/** Throws ImageError for an image whose header or tables leave nothing to tell; and SystemError. */
export function usageOfQcow2(store: Store, options: UsageOptions): SpaceUsage {
  return new Usage(new Qcow2Structure(store), options).run()
}

class Usage {
  private readonly rows: TableRows
  private readonly blocks: RefcountBlocks
  private readonly owned: readonly Owned[]
  private readonly owners: Owners
  private readonly entries: readonly SnapshotEntrySize[]
  /** Their indexes. */
  private readonly chosen: readonly number[]
  private readonly map: DiskMapBuilder | undefined
  /** L1 entries that name no possible place. */
  private damagedTables = 0
  private heldUnits = 0
  private packedUnits = 0
  private packedBytes = 0

  constructor(
    private readonly image: Qcow2Structure,
    private readonly options: UsageOptions,
  ) {
    const { obstacle, header, store } = image
    if (obstacle) {
      const hint = 'look at it with vimgfs check'
      throw new ImageError('CORRUPT', obstacle.message, { path: store.path, hint })
    }
    const { chosen, mapCells } = options
    this.rows = new TableRows(image)
    this.blocks = new RefcountBlocks(image)
    this.owned = ownedTables(image)
    this.entries = snapshotEntries(image)
    const isChosen = this.entries.map(({ id, l1At }) =>
      chosen.some(one => one.id === id && one.offset === l1At) ? 1 : 0,
    )
    this.chosen = isChosen.flatMap((is, index) => (is ? [index] : []))
    this.owners = new Owners(image.clusters + 1, Uint8Array.of(0, 0, ...isChosen))
    if (mapCells > 0) this.map = new DiskMapBuilder(header.sizeBytes, mapCells)
  }

  run(): SpaceUsage {
    const { owners, image, blocks } = this
    const { clusters, maxCount } = image
    for (let first = 0; first <= clusters; first = owners.end) {
      owners.begin(first)
      const tell = (share: number) => {
        const done = first + (Math.min(owners.end, clusters) - first) * share
        this.options.progress?.(Math.min(1, done / Math.max(1, clusters)))
      }
      this.referToAll(first === 0, tell)
      owners.sumUp(blocks, clusters, maxCount)
      if (this.map) this.mapWindow(this.map, first === 0)
    }
    return this.result()
  }

  /** Counts all references to the window. */
  private referToAll(isFirst: boolean, tell: (share: number) => void): void {
    const { image, owners } = this
    const { clusterBytes } = image
    // The L1 tables are counted with their owners.
    const l1Tables = new Set(image.l1Tables.map(({ at }) => at))
    for (const { name, at, bytes } of image.regions) {
      if (l1Tables.has(at) && name.startsWith('the L1 table')) continue
      const first = Math.floor(at / clusterBytes)
      owners.referCommon(first, Math.ceil((at + bytes) / clusterBytes) - first)
    }
    for (const { at, isSound } of bitmapClusters(image)) {
      if (isSound && at > 0) owners.referCommon(at / clusterBytes, 1)
    }
    this.referToBlocks()
    this.owned.forEach((one, index) => {
      this.referFrom(one, isFirst)
      tell((index + 1) / this.owned.length)
    })
  }

  private referToBlocks(): void {
    const { blocks, owners, image } = this
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      if (!blocks.isUnreadable(block)) {
        owners.referCommon(blocks.offsetOf(block) / image.clusterBytes, 1)
      }
    }
  }

  private referFrom({ owner, table }: Owned, isFirst: boolean): void {
    const { owners, image } = this
    const { clusterBytes, isExternal } = image
    const l1At = table.at / clusterBytes
    owners.refer(owner, l1At, Math.ceil((table.entries * 8) / clusterBytes), HOLDS.table)
    this.eachTable(table, isFirst, at => {
      owners.refer(owner, at / clusterBytes, 1, HOLDS.table)
      this.rows.each(at, (kind, first, length) => {
        if (isFirst && owner === DISK) this.hold(kind, length)
        if (isExternal || kind === ROW.plainZero) return
        if (kind !== ROW.packed) owners.refer(owner, first, length, HOLDS_OF[kind])
        else {
          const from = Math.floor(first / clusterBytes)
          const to = Math.floor((first + length - 1) / clusterBytes)
          owners.refer(owner, from, to - from + 1, HOLDS.packed)
        }
      })
    })
  }

  private hold(kind: RowKind, length: number): void {
    if (kind === ROW.data) this.heldUnits += length
    if (kind !== ROW.packed) return
    this.heldUnits++
    this.packedUnits++
    this.packedBytes += length
  }

  private eachTable(
    table: L1Table,
    isFirst: boolean,
    visit: (at: number, l1Index: number) => void,
  ): void {
    const { image } = this
    walkL1(image.store, table, (high, low, index) => {
      const at = hostOffset(high, low)
      const isPossible = at > 0 && at % image.clusterBytes === 0 && at < image.fileBytes
      if (isPossible) visit(at, index)
      else if (isFirst) this.damagedTables++
    })
  }

  /** Adds to the map what the disk has in the window. */
  private mapWindow(map: DiskMapBuilder, isFirst: boolean): void {
    const { owners, image } = this
    const { clusterBytes, isExternal } = image
    const disk = this.owned.find(({ owner }) => owner === DISK)
    if (!disk) return
    const perTable = clusterBytes / image.l2EntryBytes
    const isInside = (cluster: number) => cluster >= owners.first && cluster < owners.end
    const sharedWith = (cluster: number) => Math.max(0, owners.lastOwnerOf(cluster) - DISK)
    this.eachTable(disk.table, false, (at, l1Index) => {
      this.rows.each(at, (kind, first, length, index) => {
        const offset = (l1Index * perTable + index) * clusterBytes
        if (kind === ROW.packed) {
          const cluster = Math.floor(first / clusterBytes)
          if (isInside(cluster)) map.add('compressed', offset, clusterBytes, sharedWith(cluster))
        } else if (kind === ROW.plainZero || isExternal) {
          if (isFirst) map.add(kind === ROW.data ? 'data' : 'zero', offset, length * clusterBytes)
        } else {
          for (
            let i = Math.max(0, owners.first - first);
            i < length && first + i < owners.end;
            i++
          ) {
            const place = offset + i * clusterBytes
            map.add(kind === ROW.data ? 'data' : 'zero', place, clusterBytes, sharedWith(first + i))
          }
        }
      })
    })
  }

  private result(): SpaceUsage {
    const { owners, image, map, entries, chosen } = this
    const { clusterBytes } = image
    const { totals } = owners
    const bytes = (clusters: number) => clusters * clusterBytes
    const reach = (owner: number, without: readonly number[]): Reach => ({
      referencedBytes: bytes(owners.referenced[owner] as number),
      exclusiveBytes: bytes(
        (owners.exclusive[owner] as number) + tableLoss(image, entries, without),
      ),
    })
    return {
      unitBytes: clusterBytes,
      space: {
        dataBytes: bytes(image.isExternal ? this.heldUnits : totals.data),
        compressedBytes: bytes(totals.packed),
        zeroBytes: bytes(totals.zero),
        metadataBytes: bytes(totals.metadata),
        leakedBytes: bytes(totals.leaked),
        freeBytes: bytes(totals.free),
      },
      compression: {
        units: this.packedUnits,
        unpackedBytes: bytes(this.packedUnits),
        packedBytes: this.packedBytes,
      },
      heldBytes: Math.min(bytes(this.heldUnits), image.header.sizeBytes),
      disk: reach(DISK, []),
      snapshots: entries.map(({ id, name }, index) => ({
        id,
        name,
        ...reach(DISK + 1 + index, [index]),
      })),
      chosen:
        chosen.length === 0
          ? undefined
          : {
              referencedBytes: bytes(owners.chosenReferenced),
              exclusiveBytes: bytes(owners.chosenExclusive + tableLoss(image, entries, chosen)),
            },
      map: map?.finish(),
      problems: this.problems(),
    }
  }

  private problems(): string[] {
    const { totals } = this.owners
    const { losses } = this.image
    const lines: [number, string][] = [
      [this.damagedTables + this.rows.damaged, 'entries of its tables name what cannot be'],
      [totals.tooLow, 'clusters have more references than their counts say'],
      [totals.tooHigh, 'clusters have higher counts than references'],
      [totals.unknown, 'clusters have counts that cannot be read'],
    ]
    return [
      ...losses.map(({ message }) => message),
      ...lines.flatMap(([count, what]) => (count > 0 ? [`${count} ${what}`] : [])),
    ]
  }
}

/** Returns the L1 tables with their owners, the disk's first, then the snapshots' in the order of their table. */
function ownedTables(image: Qcow2Structure): Owned[] {
  const byNumber = new Map(
    image.l1Tables.filter(table => !table.isActive).map(table => [table.name, table]),
  )
  const active = image.l1Tables.filter(table => table.isActive)
  return [
    ...active.map(table => ({ owner: DISK, table })),
    ...image.snapshots.snapshots.flatMap(({ number }) => {
      const table = byNumber.get(`the L1 table of snapshot ${number}`)
      return table ? [{ owner: DISK + number, table }] : []
    }),
  ]
}

interface SnapshotEntrySize extends UsedSnapshot {
  readonly l1At: number
  readonly bytes: number
}

function snapshotEntries({ store, header }: Qcow2Structure): SnapshotEntrySize[] {
  const entries: SnapshotEntrySize[] = []
  walkSnapshotTable(store, header, ({ entry, bytes }) => {
    entries.push({
      id: entry.id.toString('utf8'),
      name: entry.name.toString('utf8'),
      l1At: entry.l1Offset,
      bytes: nextSnapshotEntry(bytes.length),
    })
  })
  return entries
}

/** Returns how many clusters shorter the snapshot table becomes without these snapshots. */
function tableLoss(
  { clusterBytes }: Qcow2Structure,
  entries: readonly SnapshotEntrySize[],
  without: readonly number[],
): number {
  const clusters = (left: readonly SnapshotEntrySize[]) =>
    Math.ceil(left.reduce((sum, { bytes }) => sum + bytes, 0) / clusterBytes)
  if (without.length === 0) return 0
  return clusters(entries) - clusters(entries.filter((_, index) => !without.includes(index)))
}
