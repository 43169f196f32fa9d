/** Checks and repairs an image with the functions of its format. */
import fs from 'node:fs'
import type { CheckOptions, RepairResult } from '../formats/check/report.js'
import type {
  CheckedImage,
  Format,
  FormatChecking,
  LayerSpec,
  RepairKind,
} from '../formats/format.js'
import { guessFormat } from '../formats/raw/guess.js'
import { findFormat } from '../formats/registry.js'
import type { FileSpec } from '../io/file-spec.js'
import { type Access, openGiven, WriteProtected } from '../io/named-file.js'
import type { WritableStore } from '../io/store.js'
import { type Chain, closeChain } from './chain.js'
import { fileSpec, storeOf } from './layer.js'
import { openChain } from './open-chain.js'
import { LOCAL_FILES } from './store-source.js'

export interface CheckRequest {
  /** By default it is found by the image's first bytes. */
  readonly format?: string | undefined
  /** The kind of repair; none by default. */
  readonly repair?: RepairKind | undefined
  /** Folders besides the image's own in which its extents may be. */
  readonly allowPaths?: readonly string[]
}

/** The result of a check, or of a repair with the check after it. */
export type Found = Pick<RepairResult, 'after'> & Partial<RepairResult>

/** An image that is open for a check, and locked with QEMU's locks. */
export class ImageCheck {
  readonly format: Format
  /** Warnings of opening, besides the findings of the check. */
  readonly warnings: readonly string[]
  private readonly checking: FormatChecking
  private readonly chain: Chain

  /** Throws ImageError, and then leaves nothing open. */
  private constructor(
    format: Format,
    checking: FormatChecking,
    name: string,
    private readonly request: CheckRequest,
    private readonly obstacle: string | undefined,
  ) {
    this.format = format
    this.checking = checking
    const isRead = request.repair === undefined || obstacle !== undefined
    this.chain = open(name, format, checking, request, isRead ? 'read' : 'write')
    const repeated = checking.needsLayer ? (checking.repeated?.(this.layer) ?? []) : []
    this.warnings = this.chain.warnings.filter(warning => !repeated.includes(warning))
  }

  /**
   * Opens the image; only for reading, if its format cannot write it. Returns undefined if the format has nothing to check.
   * Throws ImageError.
   */
  static open(name: string, request: CheckRequest): ImageCheck | undefined {
    const format = formatOfImage(name, request.format)
    const { checking } = format
    if (!checking) return undefined
    try {
      return new ImageCheck(format, checking, name, request, undefined)
    } catch (error) {
      const isProtected = error instanceof WriteProtected
      if (!isProtected || !checking.needsLayer || request.repair === undefined) throw error
      return new ImageCheck(format, checking, name, request, error.message)
    }
  }

  /** Throws ImageError, SystemError. */
  async run(options: CheckOptions = {}): Promise<Found> {
    const checker = await this.checking.load()
    const image = this.checkedImage()
    const { repair } = this.request
    return repair === undefined
      ? { after: checker.check(image, options) }
      : checker.repair(image, repair, options)
  }

  close(): void {
    closeChain(this.chain)
  }

  private get layer(): LayerSpec {
    return this.chain.layers[0]
  }

  private checkedImage(): CheckedImage {
    const { layer } = this
    const stores = new Map<number, WritableStore>()
    // Extents in one file share a store.
    const storeOf = (file: FileSpec): WritableStore => {
      const size = BigInt64Array.of(BigInt(file.sizeBytes))
      const store = stores.get(file.fd) ?? LOCAL_FILES.writable(file, size)
      stores.set(file.fd, store)
      return store
    }
    const isDeviceFile = ({ fd }: FileSpec) => fs.fstatSync(fd).isBlockDevice()
    return {
      store: storeOf(layer),
      layer: this.checking.needsLayer ? layer : undefined,
      storeOf,
      isDevice: isDeviceFile(layer),
      isDeviceFile,
      obstacle: this.obstacle,
    }
  }
}

/** Returns the format of the image at `name`; `stated` where that is given. Throws ImageError. */
export function formatOfImage(name: string, stated: string | undefined): Format {
  if (stated !== undefined) return findFormat(stated) as Format
  const file = openGiven(name)
  try {
    return guessFormat(storeOf(fileSpec(file)))
  } finally {
    fs.closeSync(file.fd)
  }
}

const open = (
  name: string,
  format: Format,
  { needsLayer }: FormatChecking,
  { allowPaths = [] }: CheckRequest,
  access: Access,
): Chain =>
  openChain(name, {
    format: format.name,
    describe: needsLayer ? 'image' : 'file',
    takesLocks: true,
    // The disk reads as before, so a list of its changes stays true.
    dropsChangeTracking: true,
    access,
    allowPaths,
  })
