/** Checks and repairs an image with the functions of its format. */
import type { CheckOptions, RepairKind } from '../../formats/check/report.js'
import type { Format, FormatChecking, LayerSpec } from '../../formats/format.js'
import { guessFormat } from '../../formats/raw/guess.js'
import { findFormat } from '../../formats/registry.js'
import { closeFolders } from '../../io/folders.js'
import { type Access, closeOpened, WriteProtected } from '../../io/named-file.js'
import { isLongWork, runApart } from './apart.js'
import { openNamedImage } from '../opening/archive.js'
import { type Chain, closeChain } from '../opening/chain.js'
import { type Found, runCheck } from './check-run.js'
import { fileSpec, storeOf } from '../layer.js'
import { openChain } from '../opening/open-chain.js'

export interface CheckRequest {
  /** By default it is found by the image's first bytes. */
  readonly format?: string | undefined
  /** The kind of repair; none by default. */
  readonly repair?: RepairKind | undefined
  /** Folders besides the image's own in which its extents may be. */
  readonly allowPaths?: readonly string[]
  /** Whether QEMU's locks are taken; true by default. A repair needs them. */
  readonly takesLocks?: boolean
}

/** An image that is open for a check, and locked with QEMU's locks. */
export class ImageCheck {
  readonly format: Format
  /** Warnings of opening, besides the findings of the check. */
  readonly warnings: readonly string[]
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

  /**
   * Checks or repairs the image. Throws ImageError, SystemError.
   * @param cancel ends a check of a larger image when it is aborted; then MountError is thrown
   * @param stop stops a check of a larger image, with what was found; see CheckSetup
   */
  run(options: CheckOptions = {}, cancel?: AbortSignal, stop?: SharedArrayBuffer): Promise<Found> {
    const { layer, obstacle } = this
    const setup = { layer, repair: this.request.repair, obstacle, stop }
    return isLongWork(layer)
      ? runApart('check', setup, options.progress, cancel)
      : runCheck(setup, options)
  }

  close(): void {
    closeChain(this.chain)
  }

  private get layer(): LayerSpec {
    return this.chain.layers[0]
  }
}

/** Returns the format of the image at `name`; `stated` where that is given. Throws ImageError. */
export function formatOfImage(name: string, stated: string | undefined): Format {
  if (stated !== undefined) return findFormat(stated) as Format
  const { folders, archive, ...file } = openNamedImage(name, 'read', [])
  try {
    return guessFormat(storeOf(fileSpec(file)))
  } finally {
    closeOpened(file)
    closeFolders(folders)
    archive?.close()
  }
}

const open = (
  name: string,
  format: Format,
  { needsLayer }: FormatChecking,
  { allowPaths = [], takesLocks = true, repair }: CheckRequest,
  access: Access,
): Chain =>
  openChain(name, {
    format: format.name,
    describe: needsLayer ? 'image' : 'file',
    takesLocks: takesLocks || repair !== undefined,
    // The disk reads as before, so a list of its changes stays true.
    dropsChangeTracking: true,
    access,
    allowPaths,
  })
