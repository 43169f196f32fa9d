/**
 * Notices when somebody changes the files of an image that is only read, without the locks that would keep him out: a copy over
 * it, another file in its place, a program on another machine. What was read of the tables does not fit the new content, so
 * nothing more may be read then.
 *
 * A look compares, for inequality only, the size and the modification time of each file, the file that its path names, and its
 * first bytes. A path that names nothing is no change: the file is still there for those who have it open. Nor are another mode,
 * another owner and another hard link.
 */
import fs from 'node:fs'
import type { LayerSpec } from '../../formats/format.js'
import type { FileSpec } from '../../io/file-spec.js'
import {
  type FileState,
  stateOfDescriptor,
  stateOfDescriptorApart,
  stateOfPath,
  stateOfPathApart,
} from '../../io/file-state.js'
import { filesOf, storeOf } from '../layer.js'

/** The first bytes that are compared: all headers have in them what changes with their tables. */
const HEAD_BYTES = 512

/** File systems whose numbers of files are those of the files for ever (statfs(2)): ext, xfs, btrfs, tmpfs, f2fs, zfs. */
const LOCAL = new Set([0xef53, 0x58465342, 0x9123683e, 0x01021994, 0xf2f52010, 0x2fc12fc1])

/** A file as it was when it was opened: plain data. */
export interface WatchedFile {
  readonly file: Pick<FileSpec, 'path' | 'fd' | 'sizeBytes' | 'part'>
  readonly state: FileState
  /** Whether its path is looked at, too: it named the file at the beginning, and not by a descriptor. */
  readonly hasPath: boolean
  /** Whether another number shows that another file has the path. On a network, or over other folders, it may not. */
  readonly hasSteadyNumber: boolean
  /** Undefined if they could not be read. */
  readonly head: Uint8Array | undefined
}

/** Returns the files of all `layers`, each once, with the state that their headers were read in. */
export function watchedFiles(layers: readonly LayerSpec[]): WatchedFile[] {
  const files = new Map(layers.flatMap(filesOf).map(file => [file.fd, file as FileSpec]))
  return [...files.values()].flatMap(file => {
    // A source notices by itself that its object has changed.
    if (file.source) return []
    const now = stateOfDescriptor(file.fd)
    if (!now) return []
    const { seconds, nanoseconds } = file.modified
    const { path, fd, sizeBytes, part } = file
    const wholePath = part?.path ?? path
    const wholeBytes = part?.wholeBytes ?? sizeBytes
    // The time and the size from before the header was read.
    const state = now.isDevice
      ? now
      : { ...now, modified: `${seconds}.${nanoseconds}`, sizeBytes: wholeBytes }
    return {
      file: { path, fd, sizeBytes, ...(part && { part }) },
      state,
      hasPath: !/^\/(proc|dev\/fd)\//.test(wholePath) && namesSame(stateOfPath(wholePath), now),
      hasSteadyNumber: isLocal(file.fd),
      head: headOf(file),
    }
  })
}

const namesSame = (named: FileState | undefined, now: FileState): boolean =>
  named?.identity === now.identity

function isLocal(fd: number): boolean {
  try {
    return LOCAL.has(fs.statfsSync(`/proc/self/fd/${fd}`).type)
  } catch {
    return false
  }
}

/** Values of the shared word. */
const QUIET = 0
const DUE = 1
const CHANGED = 2

export class ChangeWatch {
  private readonly word: Int32Array

  /** @param onChange called once in all threads, by the one that has noticed a change, with the path of the file */
  constructor(
    private readonly files: readonly WatchedFile[],
    readonly shared: SharedArrayBuffer,
    private readonly onChange: (path: string) => void,
  ) {
    this.word = new Int32Array(shared)
  }

  static memory(): SharedArrayBuffer {
    return new SharedArrayBuffer(4)
  }

  /** Whether a change has been noticed. */
  get isChanged(): boolean {
    return Atomics.load(this.word, 0) === CHANGED
  }

  /** Makes the next read look. */
  makeDue(): void {
    Atomics.compareExchange(this.word, 0, QUIET, DUE)
  }

  /** Reports whether the image has changed. Looks if that is due, which costs a few system calls for each file. */
  hasChanged(): boolean {
    const state = Atomics.load(this.word, 0)
    if (state !== DUE) return state === CHANGED
    // Only one thread looks.
    return Atomics.compareExchange(this.word, 0, DUE, QUIET) === DUE ? this.look() : this.isChanged
  }

  /** Looks at all files. Returns whether one has changed. */
  look(): boolean {
    for (const watched of this.isChanged ? [] : this.files) {
      const { file } = watched
      if (this.differs(watched, stateOfDescriptor(file.fd), namedNow(watched))) this.note(file.path)
    }
    return this.isChanged
  }

  /**
   * Does the same for `count` files from number `first` on, and does not block this thread if storage does not answer. It reads
   * first bytes only where the times do not tell: of devices, and where anything else has changed. Returns undefined if it is done.
   */
  lookApart(first: number, count: number): Promise<unknown> | undefined {
    let apart: Promise<void>[] | undefined
    for (const watched of this.files.slice(first, first + count)) {
      // A call of its own costs a tenth of one by another thread.
      if (watched.hasSteadyNumber) this.compare(watched, namedNow(watched))
      else (apart ??= []).push(this.compareApart(watched))
    }
    return apart && Promise.all(apart)
  }

  private async compareApart(watched: WatchedFile): Promise<void> {
    const { file, hasPath } = watched
    const named = hasPath ? await stateOfPathApart(file.part?.path ?? file.path) : undefined
    const isSame = named?.identity === watched.state.identity && !watched.state.isDevice
    this.compare(watched, named, isSame ? named : await stateOfDescriptorApart(file.fd))
  }

  /** @param named the state of what the path names */
  private compare(
    watched: WatchedFile,
    named: FileState | undefined,
    now = named?.identity === watched.state.identity && !watched.state.isDevice
      ? named
      : stateOfDescriptor(watched.file.fd),
  ): void {
    const { state } = watched
    if (now && now === named && sameTimes(now, state) && now.changed === state.changed) return
    if (this.differs(watched, now, named)) this.note(watched.file.path)
  }

  /** The number of files. */
  get count(): number {
    return this.files.length
  }

  private differs(
    watched: WatchedFile,
    now: FileState | undefined,
    named: FileState | undefined,
  ): boolean {
    const { state, file, head, hasSteadyNumber } = watched
    if (now && !state.isDevice && !sameTimes(now, state)) return true
    if (named && named.identity !== state.identity) {
      if (hasSteadyNumber || state.isDevice || !sameTimes(named, state)) return true
    }
    return !isSameHead(head, file)
  }

  private note(path: string): void {
    if (Atomics.exchange(this.word, 0, CHANGED) !== CHANGED) this.onChange(path)
  }
}

const namedNow = ({ file, hasPath }: WatchedFile): FileState | undefined =>
  hasPath ? stateOfPath(file.part?.path ?? file.path) : undefined

const sameTimes = (a: FileState, b: FileState): boolean =>
  a.modified === b.modified && a.sizeBytes === b.sizeBytes

/** Storage that does not answer says nothing about the content: the read itself fails then. */
function isSameHead(head: Uint8Array | undefined, file: WatchedFile['file']): boolean {
  const now = head && headOf(file)
  return head === undefined || now === undefined || Buffer.compare(head, now) === 0
}

function headOf(file: WatchedFile['file']): Buffer | undefined {
  const head = Buffer.alloc(HEAD_BYTES)
  try {
    return head.subarray(0, storeOf(file).read(head, 0, HEAD_BYTES, 0))
  } catch {
    return undefined
  }
}
