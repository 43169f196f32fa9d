/**
 * Writes to disks of hostile images: the steps, the bytes that the disk must read as, and the end of a process that hangs.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  statSync,
  writeSync,
} from 'node:fs'
import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import type { Test } from 'tap'
import { storeOf } from '../../src/image/layer.js'
import { noise } from '../fixtures/model.js'
import { problemOf } from './exercise.js'
import type { TestedDisk } from './writable.js'

const { O_CREAT, O_RDWR } = constants
const SECTOR = 512
const K = 1024
/** The processor time for one image after which the process counts as hanging and is ended. */
const HANG_MS = 25_000

// --- The files

/** Writes these bytes to the file, and gives it this size. */
export function put(path: string, bytes: Buffer, sizeBytes = bytes.length): void {
  const fd = openSync(path, O_RDWR | O_CREAT)
  const now = fstatSync(fd).size
  if (now > MAX_CONTENT_BYTES) ftruncateSync(fd, 0)
  if (!readFileSync(fd).equals(bytes)) {
    ftruncateSync(fd, Math.min(bytes.length, fstatSync(fd).size))
    writeSync(fd, bytes, 0, bytes.length, 0)
  }
  if (fstatSync(fd).size !== sizeBytes) ftruncateSync(fd, sizeBytes)
  closeSync(fd)
}

export interface Content {
  readonly size: number
  /** The bytes from the start on. The rest of the file is a hole that a test has made. */
  readonly bytes: Buffer
}
export type Before = ReadonlyMap<string, Content>
const MAX_CONTENT_BYTES = 4 * 2 ** 20

export function contentOf(path: string): Content {
  const { size } = statSync(path)
  if (size <= MAX_CONTENT_BYTES) return { size, bytes: readFileSync(path) }
  const fd = openSync(path, 'r')
  const bytes = Buffer.alloc(MAX_CONTENT_BYTES)
  storeOf({ path, fd, sizeBytes: size }).read(bytes, 0, bytes.length, 0)
  closeSync(fd)
  return { size, bytes }
}

export const isSame = (a: Content, b: Content): boolean =>
  a.size === b.size && a.bytes.equals(b.bytes)

// --- Requests to the disk

export const step = fc.record({
  kind: fc.constantFrom('write', 'write', 'write', 'zeros', 'zero', 'flush'),
  /** The base of the place: the disk's start, its end or a 2^16th of it. */
  from: fc.constantFrom('start', 'part', 'part', 'end'),
  at: fc.nat(2 ** 16 - 1),
  isAligned: fc.boolean(),
  length: fc.oneof(fc.nat(40 * K), fc.nat(5000), fc.constantFrom(512, 4096, 8192, 65536, 131072)),
})
export type Step = Parameters<Parameters<typeof step.map>[0]>[0]

/** Returns the range of the disk that a step changes. */
export function rangeOf({ from, at, isAligned, length }: Step, sizeBytes: number) {
  const place = from === 'start' ? at : from === 'end' ? sizeBytes - at : (sizeBytes / 2 ** 16) * at
  const offset = Math.max(0, Math.min(Math.floor(place), sizeBytes - 1))
  const start = isAligned ? offset - (offset % SECTOR) : offset
  return { start, end: Math.min(sizeBytes, start + length) }
}
/** How much of a disk is compared around each step, if the disk is too large to be compared as a whole. */
const AROUND_BYTES = 16 * K
const MAX_WHOLE_BYTES = 4 * 2 ** 20
const PIECE_BYTES = 4 * K

/** The bytes that a part of the disk must read as. A byte of `known` is 0 where that is unknown. */
interface Window {
  readonly start: number
  readonly bytes: Buffer
  readonly known: Buffer
}

export type Read = (offset: number, length: number) => Buffer

export class Model {
  readonly problems: string[] = []
  private readonly windows: Window[]

  constructor(sizeBytes: number, steps: readonly Step[], read: Read) {
    this.windows = windowsOf(sizeBytes, steps).map(({ start, end }) => {
      const bytes = Buffer.alloc(end - start)
      return { start, bytes, known: Buffer.alloc(end - start) }
    })
    for (const window of this.windows) {
      this.eachPiece(window, read, (piece, at) => {
        if (!piece) return
        piece.copy(window.bytes, at)
        window.known.fill(1, at, at + piece.length)
      })
    }
  }

  /** Notes that `source` was written at `offset`; or, if it is undefined, that any part of `length` bytes may have changed. */
  changed(offset: number, length: number, source: Buffer | undefined): void {
    for (const { start, bytes, known } of this.windows) {
      const from = Math.max(offset, start)
      const to = Math.min(offset + length, start + bytes.length)
      if (from >= to) continue
      source?.copy(bytes, from - start, from - offset, to - offset)
      known.fill(source ? 1 : 0, from - start, to - start)
    }
  }

  compare(when: string, read: Read): void {
    for (const window of this.windows) {
      const { start, bytes, known } = window
      this.eachPiece(window, read, (piece, at, length) => {
        if (piece?.equals(bytes.subarray(at, at + length))) return
        const isKnown = known.subarray(at, at + length)
        if (!piece) {
          const isSure = isKnown.every(byte => byte === 1)
          if (isSure) this.problems.push(`${when} ${start + at} cannot be read any more`)
          return
        }
        const wrong = piece.findIndex((byte, i) => isKnown[i] === 1 && byte !== bytes[at + i])
        if (wrong >= 0) this.problems.push(`${when} ${start + at + wrong} reads as something else`)
      })
    }
  }

  private eachPiece(
    { start, bytes }: Window,
    read: Read,
    act: (piece: Buffer | undefined, at: number, length: number) => void,
  ): void {
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      const length = Math.min(PIECE_BYTES, bytes.length - at)
      act(
        this.attempt('read', () => read(start + at, length)),
        at,
        length,
      )
    }
  }

  /** Returns what `act` returns; undefined if it failed in an allowed way. */
  attempt<T>(what: string, act: () => T): T | undefined {
    try {
      return act()
    } catch (error) {
      const problem = problemOf(error)
      if (problem) this.problems.push(`${what}: ${problem}`)
      return undefined
    }
  }
}

function windowsOf(sizeBytes: number, steps: readonly Step[]): { start: number; end: number }[] {
  if (sizeBytes <= MAX_WHOLE_BYTES) return [{ start: 0, end: sizeBytes }]
  const around = steps.map(each => rangeOf(each, sizeBytes))
  return [...around, { start: 0, end: 0 }, { start: sizeBytes, end: sizeBytes }].map(
    ({ start, end }) => ({
      start: Math.max(0, start - AROUND_BYTES),
      end: Math.min(sizeBytes, end + AROUND_BYTES),
    }),
  )
}

/** Makes the steps, and closes the disk. Returns whether something was written, and writing has not ended. */
export function perform(disk: TestedDisk, steps: readonly Step[], model: Model): boolean {
  let writes = 0
  const attempt = (what: string, act: () => void): boolean => {
    const isDone = model.attempt(what, () => {
      act()
      return true
    })
    return isDone === true
  }
  steps.forEach((each, i) => {
    const { start, end } = rangeOf(each, disk.sizeBytes)
    const length = end - start
    if (each.kind === 'flush') attempt('flush', () => disk.flush())
    else if (length > 0) {
      const source = each.kind === 'write' ? noise(length, i + 1000) : Buffer.alloc(length)
      const isDone = attempt(`${each.kind} of ${length} at ${start}`, () => {
        if (each.kind === 'zero') disk.zero(start, length)
        else disk.write(source, 0, length, start)
      })
      if (isDone) writes++
      model.changed(start, length, isDone ? source : undefined)
    }
  })
  const isClosed = attempt('close', () => void disk.close())
  if (/inside vimgfs/.test(disk.failure)) model.problems.push(disk.failure)
  return isClosed && disk.failure === '' && writes > 0
}

// --- What hangs

export class Guard {
  private readonly beats = new Int32Array(new SharedArrayBuffer(4))

  /**
   * Ends the process if an image hangs. All calls are synchronous, so only another thread can notice a hang. The image then stays
   * in its folder.
   */
  constructor(t: Test) {
    const { beats } = this
    const guard = new Worker(
      `const { workerData: { beats, limit, pid } } = require('node:worker_threads')
       const cpu = () => { const { user, system } = process.cpuUsage(); return (user + system) / 1000 }
       for (let last, before; ; ) {
         const beat = Atomics.load(beats, 0)
         if (beat !== last) [last, before] = [beat, cpu()]
         if (Atomics.wait(beats, 0, beat, 1000) !== 'timed-out' || beat % 2 === 0) continue
         if (cpu() - before < limit) continue
         require('node:fs').writeSync(2, 'an image hangs; it is left in the newest folder vimgfs-test-…\\n')
         process.kill(pid, 'SIGKILL')
       }`,
      { eval: true, workerData: { beats, limit: HANG_MS, pid: process.pid } },
    )
    guard.unref()
    t.teardown(() => guard.terminate())
  }

  /** Call it before and after using an image. */
  beat(): void {
    Atomics.add(this.beats, 0, 1)
    Atomics.notify(this.beats, 0)
  }
}
