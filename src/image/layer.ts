/** A layer of an image as it was opened: plain data, which the threads get as a message. */
import fs from 'node:fs'
import type { CipherSpec } from '../crypto/spec.js'
import { FileStore } from '../io/store.js'
import { sizeOf } from '../io/libc.js'
import type { OpenedFile } from '../io/named-file.js'
import type { CowHeader } from '../formats/cow/header.js'
import { isTooLarge, tooLarge } from '../formats/disk-size.js'
import type { Format } from '../formats/probe.js'
import type { QcowHeader } from '../formats/qcow/header.js'
import type { Qcow2Header } from '../formats/qcow2/header.js'
import type { VmdkSpec } from '../formats/vmdk/image.js'

export interface FileSpec {
  readonly path: string
  readonly fd: number
  readonly sizeBytes: number
  /** What the file takes on its own disk: no more than this of it can be data. */
  readonly allocatedBytes: number
  /** That it was a regular file with a name when it was opened; some file systems tell of none. */
  readonly hasName?: boolean
  /** When it was last written before it was opened. */
  readonly modified: Timestamp
  /** Permission bits. */
  readonly mode: number
  /** The group that it belongs to. */
  readonly gid: number
}

export interface LayerSpec extends FileSpec {
  readonly format: Format
  /** That nobody stated the format: it was found by the file's first bytes. */
  readonly isProbed?: boolean
  readonly qcow2?: Qcow2Header
  readonly qcow?: QcowHeader
  readonly cow?: CowHeader
  /** Present where its data are encrypted. */
  readonly encryption?: LayerEncryption
  readonly dataFile?: FileSpec
  /** Its extents have files of their own, or its file is one of them. */
  readonly vmdk?: VmdkSpec
  /** What shows through where it is silent, by its place among the layers. */
  readonly below?: number
}

/** 'AES' is the method of old images: 128 bits, without anything that would tell a wrong passphrase. */
export type EncryptionMethod = 'AES' | 'LUKS'

export interface LayerEncryption {
  readonly method: EncryptionMethod
  /** Bytes of the file; of LUKS alone. */
  readonly headerArea?: { readonly offset: number; readonly length: number }
  /** Once it is unlocked. */
  readonly spec?: CipherSpec
}

export interface Timestamp {
  readonly seconds: number
  readonly nanoseconds: number
}

/** What its format says of a layer's disk; undefined where the file is the disk. */
const headerOf = ({ qcow2, qcow, cow, vmdk }: LayerSpec) => qcow2 ?? qcow ?? cow ?? vmdk

/** The size of a layer's disk, in bytes. */
export const diskBytes = (layer: LayerSpec): number => headerOf(layer)?.sizeBytes ?? layer.sizeBytes

/** The backing file that a layer names; parents of vmdk are named otherwise. */
export const backingNameOf = ({ qcow2, qcow, cow }: LayerSpec): string | undefined =>
  (qcow2 ?? qcow ?? cow)?.backingName

/** The files of a layer's extents, in their order. */
export const extentFiles = ({ vmdk }: Pick<LayerSpec, 'vmdk'>): FileSpec[] =>
  vmdk?.extents.flatMap(({ file }) => file ?? []) ?? []

/** All files of a layer, each once; its own first. */
export function filesOf<T extends Pick<FileSpec, 'fd' | 'sizeBytes'>>(
  layer: T & Pick<LayerSpec, 'dataFile' | 'vmdk'>,
): (T | FileSpec)[] {
  const files = [layer, ...(layer.dataFile ? [layer.dataFile] : []), ...extentFiles(layer)]
  return [...new Map(files.map(file => [file.fd, file])).values()]
}

/**
 * The paths of a layer's files that have been removed or replaced since they were opened: what is written
 * to them is gone with the last process that has them open.
 */
export const removedFiles = (layer: LayerSpec): string[] =>
  filesOf(layer)
    .filter(({ fd, hasName }) => hasName && isRemoved(fd))
    .map(({ path }) => path)

function isRemoved(fd: number): boolean {
  try {
    return fs.fstatSync(fd).nlink === 0
  } catch {
    // Its file system does not answer, which says nothing about the name.
    return false
  }
}

/** All files that the bytes of layer `index` come from: its own, and those of the layers below. */
export function filesFrom(layers: readonly LayerSpec[], index: number): FileSpec[] {
  const files: FileSpec[] = []
  for (let i: number | undefined = index; i !== undefined; ) {
    const layer = layers[i] as LayerSpec
    files.push(...filesOf(layer))
    i = layer.below
  }
  return files
}

/** When the last of `files` was written; there is at least one. */
export const lastModified = (files: readonly FileSpec[]): Timestamp =>
  files
    .map(({ modified }) => modified)
    .reduce((a, b) => ((a.seconds - b.seconds || a.nanoseconds - b.nanoseconds) < 0 ? b : a))

/** Throws ImageError for a file that is larger than a number says exactly. */
export function fileSpec({ path, fd, stat }: OpenedFile): FileSpec {
  if (isTooLarge(stat.size)) throw tooLarge(path, stat.size, 'file')
  const sizeBytes = stat.isBlockDevice() ? sizeOf(fd) : Number(stat.size)
  const hasName = stat.isFile() && stat.nlink > 0n
  const mode = Number(stat.mode & 0o777n)
  const times = { modified: timestamp(stat.mtimeNs), mode, gid: Number(stat.gid) }
  return { path, fd, sizeBytes, allocatedBytes: allocatedBytes(stat, sizeBytes), hasName, ...times }
}

/** Before 1970 as well nanoseconds count from the second before. */
function timestamp(time: bigint): Timestamp {
  const nanoseconds = ((time % NANOSECONDS) + NANOSECONDS) % NANOSECONDS
  const seconds = Number((time - nanoseconds) / NANOSECONDS)
  return { seconds, nanoseconds: Number(nanoseconds) }
}

const NANOSECONDS = 10n ** 9n

function allocatedBytes(stat: fs.BigIntStats, sizeBytes: number): number {
  return stat.isBlockDevice() ? sizeBytes : Number(stat.blocks) * 512
}

/** What a file takes now, where `file` says what it took when it was opened. */
export const allocatedNow = (file: FileSpec): number =>
  allocatedBytes(fs.fstatSync(file.fd, { bigint: true }), file.sizeBytes)

export function storeOf(file: Pick<FileSpec, 'path' | 'fd' | 'sizeBytes'>): FileStore {
  return new FileStore(file.path, file.fd, file.sizeBytes)
}
