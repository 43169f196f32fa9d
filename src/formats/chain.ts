/**
 * Opening an image with all that it stands on: its backing files and data files, as plain data that
 * is handed to worker threads. Nothing is read but headers and the top's snapshot table.
 */
import fs from 'node:fs'
import { ImageError } from '../errors.js'
import { isLockedByOthers, sizeOf } from '../io/libc.js'
import { allowedFolders, type OpenedFile, openGiven, openNamed } from '../io/named-file.js'
import { FileStore } from '../io/store.js'
import { MAX_CHAIN_DEPTH } from './limits.js'
import { FORMATS, type Format, probe, probeGiven } from './probe.js'
import { INCOMPATIBLE, type Qcow2Header, readHeader } from './qcow2/header.js'
import { type Qcow2Snapshot, readSnapshots } from './qcow2/snapshots.js'

/** QEMU locks this byte of an image while it may write (block/file-posix.c, RAW_LOCK_PERM_BASE + 1). */
const QEMU_WRITE_LOCK_AT = 101

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
}

export interface OpenOptions {
  /** The image's format; found by its first bytes where it is not given. */
  readonly format?: Format
  /** Folders besides the image's own that it may name files in. */
  readonly allowPaths?: readonly string[]
  /** Layers at most, 1 to MAX_CHAIN_DEPTH.highest. */
  readonly maxDepth?: number
  /**
   * Opens it only to describe it, alone or with its backing files: data files stay closed, and
   * encrypted images pass.
   */
  readonly describe?: 'image' | 'chain'
}

/** Opens `image` and what it stands on, for reading. Throws ImageError, and then leaves nothing open. */
export function openChain(image: string, options: OpenOptions = {}): Chain {
  const opener = new ChainOpener(image, options)
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
  ) {}

  open(): Chain {
    const top = this.layer(openGiven(this.image), this.options.format, true)
    this.allowed = allowedFolders(this.image, this.options.allowPaths ?? [])
    const layers: [LayerSpec, ...LayerSpec[]] = [this.withDataFile(top)]
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
      last = this.withDataFile(this.backing(last, last.qcow2.backingName))
      layers.push(last)
    }
    const [{ qcow2 }] = layers
    const snapshots = qcow2 ? readSnapshots(storeOf(top), qcow2) : []
    return { layers, snapshots, warnings: this.warnings }
  }

  close(): void {
    for (const file of this.opened) fs.closeSync(file.fd)
  }

  private backing(overlay: LayerSpec, name: string): LayerSpec {
    const format = this.statedFormat(overlay, name)
    const file = openNamed(name, { by: overlay.path, role: 'backing file', allowed: this.allowed })
    if (
      this.opened.some(
        other => other.stat.dev === file.stat.dev && other.stat.ino === file.stat.ino,
      )
    ) {
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
    return this.layer(file, format, false)
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

  private layer(file: OpenedFile, format: Format | undefined, isTop: boolean): LayerSpec {
    this.opened.push(file)
    const spec = fileSpec(file)
    const store = storeOf(spec)
    const actual = format ?? (isTop ? probeGiven(store) : probe(store))
    if (isLockedByOthers(file.fd, QEMU_WRITE_LOCK_AT)) {
      this.warnings.push(
        `${file.path}: another program has it open for writing (a running machine?); what is read may be out of date or torn`,
      )
    }
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
    this.judge(header, spec.path)
    return { ...layer, qcow2: header }
  }

  private judge(header: Qcow2Header, path: string): void {
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
    if (header.incompatible & INCOMPATIBLE.dirty) {
      this.warnings.push(
        `${path}: it was not closed cleanly (its dirty bit is set); its data read as they are`,
      )
    }
    if (header.incompatible & INCOMPATIBLE.corrupt) {
      this.warnings.push(
        `${path}: it is marked corrupt; what is readable is shown, check it with qemu-img check on a copy`,
      )
    }
  }

  private withDataFile(layer: LayerSpec): LayerSpec {
    const header = layer.qcow2
    if (!header || this.options.describe) return layer
    if ((header.incompatible & INCOMPATIBLE.externalData) === 0n) return layer
    const name = header.dataFileName as string
    const file = openNamed(name, { by: layer.path, role: 'data file', allowed: this.allowed })
    this.opened.push(file)
    return { ...layer, dataFile: fileSpec(file) }
  }
}

function fileSpec({ path, fd, stat }: OpenedFile): FileSpec {
  const isDevice = stat.isBlockDevice()
  const sizeBytes = isDevice ? sizeOf(fd) : Number(stat.size)
  return { path, fd, sizeBytes, allocatedBytes: isDevice ? sizeBytes : Number(stat.blocks) * 512 }
}

export function storeOf(file: FileSpec): FileStore {
  return new FileStore(file.path, file.fd, file.sizeBytes)
}
