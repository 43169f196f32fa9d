/** The main thread's view of a transport. */
import type { CacheSizes, ViewSet } from '../image/reading/view-set.js'
import type { Logger } from '../log.js'
import type { Backings } from './nodes/backings.js'
import type { Gate } from './workers/gate.js'
import type { LookRequests } from './live/look-requests.js'
import type { MountRequest } from './mounting/mount.js'
import type { PassthroughRules } from './nodes/passthrough.js'
import type { MountInfo } from '../io/mountinfo.js'
import type { ScratchMaker } from './scratch/scratch-maker.js'
import type { TableWrites } from './partitions/table-writes.js'
import type { ChangeTree } from './workers/errands.js'
import type { WorkerStats } from './status/stats.js'
import type { Appearance } from './nodes/tree.js'
import type { World } from './live/world.js'
import type { WrittenFiles } from './writing/written-files.js'

/** How to talk to the kernel: with its own protocol, or through the npm package fuse-native. */
export const TRANSPORTS = ['direct', 'libfuse'] as const
export type Transport = (typeof TRANSPORTS)[number]

export interface SessionParts {
  /** The world that the mount shows at first. */
  readonly world: World
  readonly gate: Gate
  /** How often each file is open, for OpenCounts. */
  readonly opens: SharedArrayBuffer
  /** Present where programs write to scratch copies. */
  readonly scratch: ScratchMaker | undefined
  readonly appearance: Appearance
  /** With allow_root, the users who may use the mount. */
  readonly onlyUids: readonly number[] | undefined
  readonly mountpoint: string
  readonly mountRequest: MountRequest
  /** The number of worker threads. Where threads are numbered, the main thread comes after them. */
  readonly threads: number
  /** Whether several files show the same bytes and can be written. Then one of the threads takes what workers hand over. */
  readonly sharesBytes: boolean
  /** The caches of each thread. */
  readonly caches: CacheSizes
  /** The counts of all threads, with the main one. */
  readonly stats: SharedArrayBuffer
  /** The fields of status.json that do not change. */
  readonly status: Readonly<Record<string, unknown>>
  /** The start of the server, in milliseconds since 1970. */
  readonly started: number
  readonly isGrowable: boolean
  /** Whether the kernel keeps what is written, and sends it later. */
  readonly writesBack: boolean
  /** Called when nobody writes the disk any more that the kernel believes to be longer than it is. */
  readonly onOverrun: () => void
  readonly passthrough: PassthroughRules
  readonly backings: Backings
  /** Called when a thread has noticed that somebody else has changed the file at `path`. */
  readonly onChanged: (path: string) => void
  /** Present if others may write the image meanwhile. */
  readonly looks: LookRequests | undefined
  /** Makes the main thread look for their snapshots. Resolves when it has. */
  readonly onLook: () => Promise<void>
  /** Writes where the partition table may be; called when the listing is to show what it says now. Never rejects. */
  readonly tables: TableWrites
  readonly onTables: () => Promise<void>
  /** Present where programs change snapshots by changing the folder. */
  readonly changeTree: ChangeTree | undefined
  readonly logger: Logger
}

/** The main thread's part of the image, to flush it and perhaps to serve it. */
export interface MainThread {
  readonly views: ViewSet
  readonly counts: WorkerStats
  /** The files that programs can write, if that is not the disk's alone. */
  readonly files: WrittenFiles | undefined
}

/** A notification to the kernel after a change: files whose pages or attributes it must forget, and names. */
export interface Forgetting {
  /** The folder whose names are those below. */
  readonly names: readonly { readonly parent: number; readonly name: string }[]
  /** Files of which it forgets the attributes, and with `pages` what it has read, too. */
  readonly files: readonly { readonly id: number; readonly pages: boolean }[]
}

export interface Session {
  /** Settles when the last request has been served. */
  readonly finished: Promise<void>
  /** Resolves when all code that serves is loaded. Throws MountError if the machine lacks resources for it. */
  prepare(): Promise<void>
  /** Mounts and serves. Throws MountError; then nothing is mounted. */
  mount(): Promise<MountInfo | undefined>
  /** Makes all threads show `world` from their next request on. The gate is raised afterwards. @param views the main thread's */
  show(world: World, views: ViewSet): void
  /** Makes the kernel forget what a change has made stale. The gate is open. Resolves when it is done. */
  forget(stale: Forgetting): Promise<void>
  /** Makes the thread that decompresses read the files of the newest world. No request is served meanwhile. */
  renewHelper(): Promise<void>
  /** Unmounts. With `detach` the mount disappears at once, and its users may finish. Throws MountError with the reason. */
  unmount(mount: MountInfo, detach: boolean): Promise<void>
  /** Ends threads that serve nothing any more, or nothing yet. */
  end(): Promise<void>
}
