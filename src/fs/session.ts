/** The main thread's view of a transport. */
import type { CatalogEntry } from '../image/catalog.js'
import type { Chain } from '../image/chain.js'
import type { DiskMemory } from '../image/disk-memory.js'
import type { CacheSizes, ViewSet } from '../image/view-set.js'
import type { Logger } from '../log.js'
import type { MountRequest } from './mount.js'
import type { MountInfo } from '../io/mountinfo.js'
import type { WorkerStats } from './stats.js'
import type { Appearance } from './tree.js'

/** How to talk to the kernel: with its own protocol, or through the npm package fuse-native. */
export const TRANSPORTS = ['direct', 'libfuse'] as const
export type Transport = (typeof TRANSPORTS)[number]

export interface SessionParts {
  readonly chain: Chain
  readonly entries: readonly CatalogEntry[]
  readonly appearance: Appearance
  /** With allow_root, the users who may use the mount. */
  readonly onlyUids: readonly number[] | undefined
  readonly mountpoint: string
  readonly mountRequest: MountRequest
  /** The number of worker threads. Where threads are numbered, the main thread comes after them. */
  readonly threads: number
  /** The caches of each thread. */
  readonly caches: CacheSizes
  readonly memory: DiskMemory | undefined
  /** The counts of all threads, with the main one. */
  readonly stats: SharedArrayBuffer
  /** The fields of status.json that do not change. */
  readonly status: Readonly<Record<string, unknown>>
  /** The start of the server, in milliseconds since 1970. */
  readonly started: number
  readonly isGrowable: boolean
  /** The text of partitions.json, if it is shown. */
  readonly partitions: string | undefined
  readonly logger: Logger
}

/** The main thread's part of the image, to flush it and perhaps to serve it. */
export interface MainThread {
  readonly views: ViewSet
  readonly counts: WorkerStats
}

export interface Session {
  /** Settles when the last request has been served. */
  readonly finished: Promise<void>
  /** Resolves when all code that serves is loaded. Throws MountError if the machine lacks resources for it. */
  prepare(): Promise<void>
  /** Mounts and serves. Throws MountError; then nothing is mounted. */
  mount(): Promise<MountInfo | undefined>
  /** Unmounts. With `detach` the mount disappears at once, and its users may finish. Throws MountError with the reason. */
  unmount(mount: MountInfo, detach: boolean): Promise<void>
  /** Ends threads that serve nothing any more, or nothing yet. */
  end(): Promise<void>
}
