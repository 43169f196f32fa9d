/** What a transport does for a mount, on the main thread. */
import type { CatalogEntry } from '../image/catalog.js'
import type { Chain } from '../image/chain.js'
import type { DiskMemory } from '../image/disk-memory.js'
import type { CacheSizes, ImageSet } from '../image/image-set.js'
import type { Logger } from '../log.js'
import type { MountRequest } from './mount.js'
import type { MountInfo } from './mountinfo.js'
import type { WorkerStats } from './stats.js'
import type { Appearance } from './tree.js'

/** How the kernel is spoken to: its protocol as it is, or by the npm package fuse-native. */
export const TRANSPORTS = ['direct', 'libfuse'] as const
export type Transport = (typeof TRANSPORTS)[number]

export interface SessionParts {
  readonly chain: Chain
  readonly entries: readonly CatalogEntry[]
  readonly appearance: Appearance
  /** With allow_root, who may ask. */
  readonly onlyUids: readonly number[] | undefined
  readonly mountpoint: string
  readonly mountRequest: MountRequest
  /** Worker threads; the main thread comes after them where threads are numbered. */
  readonly threads: number
  /** Of each thread. */
  readonly caches: CacheSizes
  readonly memory: DiskMemory | undefined
  /** Of all threads, the main one included. */
  readonly stats: SharedArrayBuffer
  /** What status.json says that does not change. */
  readonly status: Readonly<Record<string, unknown>>
  /** When the server did, in milliseconds since 1970. */
  readonly started: number
  readonly isGrowable: boolean
  readonly logger: Logger
}

/** What the main thread has of the image, to flush it and perhaps to serve it. */
export interface MainThread {
  readonly images: ImageSet
  readonly counts: WorkerStats
}

export interface Session {
  /** Settles when the last request has been served. */
  readonly finished: Promise<void>
  /** Settles when all is loaded that serves. Throws MountError where the machine lacks the means. */
  prepare(): Promise<void>
  /** Mounts, and serves from then on. Throws MountError; then nothing is mounted. */
  mount(): Promise<MountInfo | undefined>
  /** `detach` takes it away at once and lets those who use it finish. Throws MountError with the reason. */
  unmount(mount: MountInfo, detach: boolean): Promise<void>
  /** Ends what serves nothing, or nothing yet. */
  end(): Promise<void>
}
