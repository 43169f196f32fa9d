/**
 * Opening an image with all that it stands on: its backing files and data files, as plain data that
 * is handed to worker threads. Nothing is read but headers and the top's snapshot table.
 */
import fs from 'node:fs'
import { ImageError } from '../errors.js'
import { sizeOf } from '../io/libc.js'
import { isWrittenByOthers, lockImage } from '../io/locks.js'
import {
  type Access,
  allowedFolders,
  type OpenedFile,
  openGiven,
  openNamed,
  WriteProtected,
} from '../io/named-file.js'
import { FileStore, WritableFileStore } from '../io/store.js'
import { MAX_CHAIN_DEPTH } from './limits.js'
import { FORMATS, type Format, probe, probeGiven } from './probe.js'
import { INCOMPATIBLE, type Qcow2Header, readHeader } from './qcow2/header.js'
import { recover } from './qcow2/recovery.js'
import { type Qcow2Snapshot, readSnapshots } from './qcow2/snapshots.js'

export interface FileSpec {
  readonly path: string
  readonly fd: number
  readonly sizeBytes: number
  /** What the file takes on its own disk: no more than this of it can be data. */
  readonly allocatedBytes: number
}

export interface LayerSpec extends FileSpec {
  readonly format: Format
  readonly modified: Timestamp
  /** Permission bits of the file. */
  readonly mode: number
  readonly qcow2?: Qcow2Header
  readonly dataFile?: FileSpec
}

export interface Timestamp {
  readonly seconds: number
  readonly nanoseconds: number
}

export interface Chain {
  /** The image first, then its backing file, and so on. Never empty. */
  readonly layers: readonly [LayerSpec, ...LayerSpec[]]
  /** The snapshots of the image itself. */
  readonly snapshots: readonly Qcow2Snapshot[]
  /** What the user should know, a line each. */
  readonly warnings: readonly string[]
  /** Whether the first layer, with its data file, is open for writing. */
  readonly isWritable: boolean
}

export interface OpenOptions {
  /** The image's format; found by its first bytes where it is not given. */
  readonly format?: Format
  /** Folders besides the image's own that it may name files in. */
  readonly allowPaths?: readonly string[]
  /** Layers at most, 1 to MAX_CHAIN_DEPTH.highest. */
  readonly maxDepth?: number
  /**
   * What the image is opened for; all that it stands on is read only. 'write if possible' falls back to
   * reading, with a warning, where the image is write-protected or marked corrupt. Reading is the default.
   */
  readonly access?: Access | 'write if possible'
  /** Whether QEMU's locks are taken; without, an image that others write is read with a warning. */
  readonly takesLocks?: boolean
  /**
   * Opens it only to describe it, alone or with its backing files: data files stay closed, and
   * encrypted images pass.
   */
  readonly describe?: 'image' | 'chain'
}

/** Opens `image` and what it stands on. Throws ImageError, and then leaves nothing open. */
export function openChain(image: string, options: OpenOptions = {}): Chain {
  const { access = 'read' } = options
  if (access !== 'write if possible') return openFor(access, image, options)
  try {
    return openFor('write', image, options)
  } catch (error) {
    if (!(error instanceof WriteProtected)) throw error
    const chain = openFor('read', image, options)
    const warning = `${error.context.path}: ${error.message}, mounted read-only`
    return { ...chain, warnings: [warning, ...chain.warnings] }
  }
}

function openFor(access: Access, image: string, options: OpenOptions): Chain {
  const opener = new ChainOpener(image, options, access)
  try {
    return opener.open()
  } catch (error) {
    opener.close()
    throw error
  }
}

export function closeChain(chain: Chain): void {
  for (const layer of chain.layers) {
    fs.closeSync(layer.fd)
    if (layer.dataFile) fs.closeSync(layer.dataFile.fd)
  }
}

class ChainOpener {
  private readonly opened: OpenedFile[] = []
  private readonly warnings: string[] = []
  private allowed: string[] = []

  constructor(
    private readonly image: string,
    private readonly options: OpenOptions,
    private readonly access: Access,
  ) {}

  open(): Chain {
    const top = this.layer(openGiven(this.image, this.access), this.options.format, this.access)
    this.allowed = allowedFolders(this.image, this.options.allowPaths ?? [])
    const layers: [LayerSpec, ...LayerSpec[]] = [this.withDataFile(top, this.access)]
    const maxDepth = this.options.maxDepth ?? MAX_CHAIN_DEPTH.default
    const isAlone = this.options.describe === 'image'
    for (let last: LayerSpec = top; !isAlone && last.qcow2?.backingName !== undefined; ) {
      if (layers.length >= maxDepth) {
        throw new ImageError(
          'UNSUPPORTED',
          `its chain of backing files is longer than ${maxDepth}`,
          {
            path: top.path,
            hint: 'raise --max-chain, or shorten it with qemu-img commit or rebase',
          },
        )
      }
      last = this.withDataFile(this.backing(last, last.qcow2.backingName), 'read')
      layers.push(last)
    }
    const [{ qcow2 }] = layers
    const snapshots = qcow2 ? readSnapshots(storeOf(top), qcow2) : []
    const isWritable = this.access === 'write'
    return { layers, snapshots, warnings: this.warnings, isWritable }
  }

  close(): void {
    for (const file of this.opened) fs.closeSync(file.fd)
  }

  private backing(overlay: LayerSpec, name: string): LayerSpec {
    const format = this.statedFormat(overlay, name)
    const file = openNamed(name, { by: overlay.path, role: 'backing file', allowed: this.allowed })
    if (this.isOpen(file)) {
      fs.closeSync(file.fd)
      throw new ImageError(
        'CORRUPT',
        `its backing file "${name}" stands above it: the chain is a loop`,
        {
          path: overlay.path,
          hint: 'name the right file with qemu-img rebase -u',
        },
      )
    }
    return this.layer(file, format, 'read')
  }

  private isOpen({ stat }: OpenedFile): boolean {
    return this.opened.some(other => other.stat.dev === stat.dev && other.stat.ino === stat.ino)
  }

  private statedFormat(overlay: LayerSpec, name: string): Format | undefined {
    const stated = overlay.qcow2?.backingFormat
    if (stated === undefined || stated === '') {
      this.warnings.push(
        `${overlay.path}: the format of its backing file "${name}" is not stated and was found by its first bytes`,
      )
      return undefined
    }
    // QEMU calls a raw file by the name of its protocol too.
    if (stated === 'file' || stated === 'host_device') return 'raw'
    const known = FORMATS.find(format => format === stated)
    if (known) return known
    throw new ImageError('UNSUPPORTED', `its backing file "${name}" has the format "${stated}"`, {
      path: overlay.path,
      hint: `${FORMATS.join(' and ')} are read; convert it with qemu-img convert`,
    })
  }

  private layer(file: OpenedFile, format: Format | undefined, access: Access): LayerSpec {
    const isTop = this.opened.length === 0
    this.opened.push(file)
    // First of all: what is read before others are kept out may change at once.
    this.lock(file, access)
    const spec = fileSpec(file)
    const store = storeOf(spec)
    const actual = format ?? (isTop ? probeGiven(store) : probe(store))
    const mtime = file.stat.mtimeNs
    const layer: LayerSpec = {
      ...spec,
      format: actual,
      modified: {
        seconds: Number(mtime / 1_000_000_000n),
        nanoseconds: Number(mtime % 1_000_000_000n),
      },
      mode: Number(file.stat.mode & 0o777n),
    }
    if (actual === 'raw') return layer
    const header = readHeader(store)
    this.judge(header, spec.path, access)
    if (header.incompatible & INCOMPATIBLE.dirty && access === 'write') return this.recovered(layer)
    return { ...layer, qcow2: header }
  }

  /** The counts of an image that was not closed cleanly are made right before anybody relies on them. */
  private recovered(layer: LayerSpec): LayerSpec {
    const size = new BigInt64Array(new SharedArrayBuffer(8))
    size[0] = BigInt(layer.sizeBytes)
    const store = new WritableFileStore(layer.path, layer.fd, size)
    try {
      const warning = recover(store)
      if (warning !== undefined) this.warnings.push(warning)
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      throw new WriteProtected(layer.path, error.message, 'mount it with -o ro, or repair a copy')
    }
    return { ...layer, sizeBytes: store.sizeBytes, qcow2: readHeader(store) }
  }

  private lock(file: OpenedFile, access: Access): void {
    if (this.options.takesLocks) {
      const warning = lockImage(file.fd, file.path, access)
      if (warning !== undefined) this.warnings.push(warning)
    } else if (isWrittenByOthers(file.fd)) {
      this.warnings.push(
        `${file.path}: another program has it open for writing (a running machine?); what is read may be out of date or torn`,
      )
    }
  }

  private judge(header: Qcow2Header, path: string, access: Access): void {
    if (header.cryptMethod !== 0 && !this.options.describe) {
      const method = header.cryptMethod === 2 ? 'LUKS' : 'AES'
      throw new ImageError(
        'UNSUPPORTED',
        `the image is encrypted (${method}), which is not read yet`,
        {
          path,
          hint: 'decrypt it into a new image with qemu-img convert',
        },
      )
    }
    const isCorrupt = (header.incompatible & INCOMPATIBLE.corrupt) !== 0n
    if (isCorrupt && access === 'write') {
      const hint = 'repair a copy of it with qemu-img check -r all, or mount it with -o ro'
      throw new WriteProtected(path, 'it is marked corrupt', hint)
    }
    // Opened for writing it is repaired.
    if (header.incompatible & INCOMPATIBLE.dirty && access === 'read') {
      this.warnings.push(
        `${path}: it was not closed cleanly (its dirty bit is set); its data read as they are`,
      )
    }
    if (isCorrupt) {
      this.warnings.push(
        `${path}: it is marked corrupt; what is readable is shown, check it with qemu-img check on a copy`,
      )
    }
  }

  private withDataFile(layer: LayerSpec, access: Access): LayerSpec {
    const header = layer.qcow2
    if (!header || this.options.describe) return layer
    if ((header.incompatible & INCOMPATIBLE.externalData) === 0n) return layer
    const name = header.dataFileName as string
    const naming = { by: layer.path, role: 'data file', allowed: this.allowed }
    const file = openNamed(name, naming, access)
    const isOpen = this.isOpen(file)
    this.opened.push(file)
    // Written to, it would write over tables.
    if (isOpen) {
      throw new ImageError('CORRUPT', `its data file "${name}" is an image of its own chain`, {
        path: layer.path,
        hint: 'restore the image from a copy',
      })
    }
    this.lock(file, access)
    return { ...layer, dataFile: fileSpec(file) }
  }
}

function fileSpec({ path, fd, stat }: OpenedFile): FileSpec {
  const sizeBytes = stat.isBlockDevice() ? sizeOf(fd) : Number(stat.size)
  return { path, fd, sizeBytes, allocatedBytes: allocatedBytes(stat, sizeBytes) }
}

function allocatedBytes(stat: fs.BigIntStats, sizeBytes: number): number {
  return stat.isBlockDevice() ? sizeBytes : Number(stat.blocks) * 512
}

/** What a file takes now, where `file` says what it took when it was opened. */
export const allocatedNow = (file: FileSpec): number =>
  allocatedBytes(fs.fstatSync(file.fd, { bigint: true }), file.sizeBytes)

export function storeOf(file: FileSpec): FileStore {
  return new FileStore(file.path, file.fd, file.sizeBytes)
}
