/** A layer of an image, and the files that it is made of. */
import fs from 'node:fs'
import { isTooLarge, SHRINK, tooLarge } from '../formats/disk-size.js'
import type { LayerSpec, Reference } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import type { FileSpec, Timestamp } from '../io/file-spec.js'
import { sizeOf } from '../io/libc.js'
import type { OpenedFile } from '../io/opened-file.js'
import { PartStore } from '../io/part-store.js'
import { FileStore, type Store } from '../io/store.js'
import { remoteStore } from '../sources/registry.js'

/** Returns the size of a layer's disk, in bytes. */
export const diskBytes = (layer: LayerSpec): number => formatOf(layer).sizeBytes(layer)

/** Returns the reference to a layer's backing file or parent. Throws ImageError if the header does not say where it is. */
export const referenceOf = (layer: LayerSpec): Reference | undefined =>
  formatOf(layer).reference?.(layer)

/** Returns all files of a layer, each once, its own first. */
export function filesOf<T extends Pick<FileSpec, 'fd' | 'sizeBytes'>>(
  layer: T & Pick<LayerSpec, 'dataFile' | 'extentFiles'>,
): (T | FileSpec)[] {
  const { dataFile, extentFiles = [] } = layer
  const files = [layer, ...(dataFile ? [dataFile] : []), ...extentFiles]
  return [...new Map(files.map(file => [file.fd, file])).values()]
}

/**
 * Returns the paths of a layer's files that have been removed or replaced since they were opened. Writes to them are lost when
 * the last process closes them.
 */
export const removedFiles = (layer: LayerSpec): string[] =>
  filesOf(layer)
    .filter(({ fd, hasName }) => hasName && isRemoved(fd))
    .map(({ path }) => path)

function isRemoved(fd: number): boolean {
  try {
    return fs.fstatSync(fd).nlink === 0
  } catch {
    // The file system does not answer, which does not mean that the name is gone.
    return false
  }
}

/** Returns the index of the layer among `layers` whose file is the one at `path`; -1 if there is none. */
export function layerOfFile(layers: readonly LayerSpec[], path: string): number {
  const named = fs.statSync(path, { bigint: true, throwIfNoEntry: false })
  if (!named) return -1
  return layers.findIndex(({ fd }) => {
    const { dev, ino } = fs.fstatSync(fd, { bigint: true })
    return dev === named.dev && ino === named.ino
  })
}

/** Returns all files from which the bytes of layer `index` come: its own, and those of the layers below. */
export function filesFrom(layers: readonly LayerSpec[], index: number): FileSpec[] {
  const files: FileSpec[] = []
  for (let i: number | undefined = index; i !== undefined; ) {
    const layer = layers[i] as LayerSpec
    files.push(...filesOf(layer))
    i = layer.below
  }
  return files
}

/** Returns the latest mtime of `files`, of which there is at least one. */
export const lastModified = (files: readonly FileSpec[]): Timestamp =>
  files
    .map(({ modified }) => modified)
    .reduce((a, b) => ((a.seconds - b.seconds || a.nanoseconds - b.nanoseconds) < 0 ? b : a))

/** Throws ImageError for a file whose size a number does not represent exactly. */
export function fileSpec({ part, ...file }: OpenedFile): FileSpec {
  const whole = wholeSpec(file)
  if (!part) return whole
  const { sizeBytes, startAt } = part
  const allocatedBytes = Math.min(whole.allocatedBytes, sizeBytes)
  const place = { path: part.path, startAt, wholeBytes: whole.sizeBytes }
  return { ...whole, path: file.path, sizeBytes, allocatedBytes, part: place }
}

function wholeSpec({ path, fd, stat, source }: Omit<OpenedFile, 'part'>): FileSpec {
  if (isTooLarge(stat.size)) throw tooLarge(path, stat.size, { what: 'file', hint: SHRINK })
  const sizeBytes = stat.isBlockDevice() ? sizeOf(fd) : Number(stat.size)
  const hasName = stat.isFile() && stat.nlink > 0n
  const mode = Number(stat.mode & 0o777n)
  const times = { modified: timestamp(stat.mtimeNs), mode, gid: Number(stat.gid) }
  if (source) return { path, fd, sizeBytes, allocatedBytes: sizeBytes, ...times, source }
  return { path, fd, sizeBytes, allocatedBytes: allocatedBytes(stat, sizeBytes), hasName, ...times }
}

/** Returns what an open file is now: its size, its times. Throws ImageError. */
export function fileNow({ path, fd, source, part, sizeBytes }: FileSpec): FileSpec {
  const stat = fs.fstatSync(fd, { bigint: true })
  const place = part && { path: part.path, startAt: part.startAt, sizeBytes }
  return fileSpec({ path, fd, stat, ...(source && { source }), ...(place && { part: place }) })
}

/** Splits a time. Nanoseconds are never negative, also before 1970. */
function timestamp(time: bigint): Timestamp {
  const nanoseconds = ((time % NANOSECONDS) + NANOSECONDS) % NANOSECONDS
  const seconds = Number((time - nanoseconds) / NANOSECONDS)
  return { seconds, nanoseconds: Number(nanoseconds) }
}

const NANOSECONDS = 10n ** 9n

function allocatedBytes(stat: fs.BigIntStats, sizeBytes: number): number {
  return stat.isBlockDevice() ? sizeBytes : Number(stat.blocks) * 512
}

/** Returns the space that a file takes now; `file` has the space at the time of opening. */
export const allocatedNow = (file: FileSpec): number =>
  file.source || file.part
    ? file.allocatedBytes
    : allocatedBytes(fs.fstatSync(file.fd, { bigint: true }), file.sizeBytes)

/** Returns the time of a file's last write until now. */
export const modifiedNow = (file: FileSpec): Timestamp =>
  file.source ? file.modified : timestamp(fs.fstatSync(file.fd, { bigint: true }).mtimeNs)

/** A file of which a store is made. */
export type StoredFile = Pick<FileSpec, 'path' | 'fd' | 'sizeBytes' | 'source' | 'part'>

/** Makes a store to read a file by, for the calling thread. */
export function storeOf({ path, fd, sizeBytes, source, part }: StoredFile): Store {
  if (part) return partStore({ path, fd, sizeBytes, ...(source && { source }), part })
  return source ? remoteStore({ path, fd, sizeBytes, source }) : new FileStore(path, fd, sizeBytes)
}

/** Makes a store of a part of a file, which is only read. */
export function partStore(file: StoredFile & Required<Pick<FileSpec, 'part'>>): PartStore {
  const { part, path, sizeBytes, ...rest } = file
  const whole = storeOf({ ...rest, path: part.path, sizeBytes: part.wholeBytes })
  return new PartStore(whole, path, part.startAt, sizeBytes)
}
