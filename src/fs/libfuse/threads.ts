/**
 * What fuse-native keeps for each of libfuse's threads, for good: memory, a reference to it and a handle in the
 * event loop. But libfuse ends threads whenever more than ten have nothing to do, and every turn of the loop
 * visits all handles: after a minute of 32 busy readers an answer took ten times as long. Here those of ended
 * threads are closed and used again.
 *
 * The package does not say which thread it asks for, but that one waits for the answer on a semaphore of
 * the package's, and the kernel tells who sleeps there. Where it does not, the memory is kept for good, as
 * the package does.
 */
import fs from 'node:fs'
import { koffi } from '../../io/native.js'

const TASKS = '/proc/self/task'
/** sem_t, the last member of the package's fuse_thread_t (fuse-native.c, 2.2.6). */
const SEMAPHORE_BYTES = 32
/** Looks for a thread that has asked, but sleeps not yet. */
const LOOKS = 50

export class ThreadMemory {
  /** Whose thread runs, or has ended since the last look; by its number. */
  private readonly owned = new Map<number, Buffer>()
  private readonly unused: Buffer[] = []
  private readonly handleBytes: number
  /** The memory of a handle is free in the turn of the loop after the one that closes it. */
  private readonly closeHandle: (handle: Buffer, done: null) => void
  private readonly deleteReference: (environment: bigint, reference: bigint) => void

  constructor() {
    const node = koffi.load(null)
    const UV_ASYNC = 1
    this.handleBytes = node.func('size_t uv_handle_size(int type)')(UV_ASYNC)
    this.closeHandle = node.func('void uv_close(void *handle, void *done)')
    this.deleteReference = node.func('int napi_delete_reference(uint64_t env, uint64_t reference)')
  }

  /**
   * Memory for the thread that sleeps on the semaphore of `session`. It begins with a reference to itself,
   * and ends with the handle (fuse_thread_locals_t).
   * @param session the package's fuse_thread_t, which begins with the environment of its references
   */
  allocate(session: Buffer, bytes: number): Buffer {
    this.reclaim(session.readBigUInt64LE())
    const memory = this.unused.pop()?.fill(0) ?? Buffer.alloc(bytes)
    const thread = this.sleeper(session)
    if (thread !== undefined) this.owned.set(thread, memory)
    return memory
  }

  private reclaim(environment: bigint): void {
    // Nobody has ended for sure where this thread itself cannot be seen.
    if (isGone(process.pid)) return
    const closing: Buffer[] = []
    for (const [thread, memory] of this.owned) {
      // A listing of the folder may leave out threads that run, when others end meanwhile.
      if (!isGone(thread)) continue
      this.owned.delete(thread)
      this.closeHandle(memory.subarray(memory.length - this.handleBytes), null)
      this.deleteReference(environment, memory.readBigUInt64LE())
      closing.push(memory)
    }
    // Handles are closed at the end of a turn, after what the first of these calls.
    if (closing.length > 0) setImmediate(() => setImmediate(() => this.unused.push(...closing)))
  }

  private sleeper(session: Buffer): number | undefined {
    const end = koffi.address(session) + BigInt(session.length)
    const semaphore = end - BigInt(SEMAPHORE_BYTES)
    for (let look = 0; look < LOOKS; look++) {
      let hasSeen = false
      for (const thread of threads()) {
        if (this.owned.has(thread)) continue
        const call = systemCall(thread)
        if (call === undefined) continue
        hasSeen = true
        const [, first] = call.split(' ')
        if (!first?.startsWith('0x')) continue
        const address = BigInt(first)
        if (address >= semaphore && address < end) return thread
      }
      if (!hasSeen) return undefined
    }
    return undefined
  }
}

/** Whether a thread has ended, for sure. */
function isGone(thread: number): boolean {
  try {
    fs.statSync(`${TASKS}/${thread}`)
    return false
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT'
  }
}

function threads(): number[] {
  try {
    return fs.readdirSync(TASKS).map(Number)
  } catch {
    // No /proc, or no descriptor is left.
    return []
  }
}

/** The number and the arguments of the system call that a thread sleeps in (proc(5), /proc/pid/syscall). */
function systemCall(thread: number): string | undefined {
  try {
    return fs.readFileSync(`${TASKS}/${thread}/syscall`, 'utf8')
  } catch {
    // It has ended meanwhile, or is not shown.
    return undefined
  }
}
