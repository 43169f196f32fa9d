/** Opening an image for `vimgfs check` and having it checked, or repaired, by its format. */
import fs from 'node:fs'
import { ImageInUse, printable } from '../errors.js'
import type { Chain } from '../image/chain.js'
import type { CheckOptions, CheckResult, RepairResult } from '../formats/check/report.js'
import type { FileSpec } from '../image/layer.js'
import type { Format } from '../formats/probe.js'
import type { VmdkSpec } from '../formats/vmdk/image.js'
import type { RepairedExtent } from '../formats/vmdk/repair.js'
import type { Access, OpenedFile } from '../io/named-file.js'
import type { Store, WritableStore } from '../io/store.js'
import { complain } from './output.js'

export const REPAIRS = ['leaks', 'all'] as const
export type RepairKind = (typeof REPAIRS)[number]

/** The result of a check, or of a repair with the check after it. */
export type Found = Pick<RepairResult, 'after'> & Partial<RepairResult>
export type Checked = Found & { readonly format: Exclude<Format, 'raw'> }

export interface CheckRequest {
  readonly format: Format | undefined
  readonly repair: RepairKind | undefined
  /** Folders besides the image's own where its extents may be. */
  readonly allowPaths: readonly string[]
}

/** Undefined where the format has nothing to check. */
export async function checkImage(
  name: string,
  request: CheckRequest,
  options: CheckOptions,
): Promise<Checked | undefined> {
  const { format, repair } = request
  const { openGiven } = await import('../io/named-file.js')
  const { guessFormat } = await import('../formats/raw/guess.js')
  const access = repair === undefined ? 'read' : 'write'
  let actual = format
  if (actual === undefined) {
    const file = openGiven(name)
    try {
      actual = guessFormat(await storeOf(file))
    } finally {
      fs.closeSync(file.fd)
    }
  }
  if (actual === 'raw') return undefined
  if (actual === 'vmdk') return checkVmdkImage(name, request, options)
  const checker = await CHECKERS[actual]()
  const file = openGiven(name, access)
  try {
    await lock(file, access)
    const store = await storeOf(file)
    const isDevice = file.stat.isBlockDevice()
    return repair === undefined
      ? { format: actual, after: checker.check(store, { ...options, isDevice }) }
      : { format: actual, ...checker.repair(store, repair, { ...options, isDevice }) }
  } finally {
    fs.closeSync(file.fd)
  }
}

interface FileCheckOptions extends CheckOptions {
  /** Nothing of a device can be cut off. */
  readonly isDevice: boolean
}

/** A format whose images are one file. */
interface Checker {
  check(store: Store, options: FileCheckOptions): CheckResult
  repair(store: WritableStore, what: RepairKind, options: FileCheckOptions): RepairResult
}

const CHECKERS: Record<Exclude<Format, 'raw' | 'vmdk'>, () => Promise<Checker>> = {
  cow: async () => ({
    check: (await import('../formats/cow/check.js')).checkCow,
    repair: (await import('../formats/cow/repair.js')).repairCow,
  }),
  qcow: async () => ({
    check: (await import('../formats/qcow/check.js')).checkQcow,
    repair: (await import('../formats/qcow/repair.js')).repairQcow,
  }),
  qcow2: async () => ({
    check: (await import('../formats/qcow2/check.js')).checkQcow2,
    repair: (await import('../formats/qcow2/repair.js')).repairQcow2,
  }),
}

async function checkVmdkImage(
  name: string,
  { repair, allowPaths }: CheckRequest,
  options: CheckOptions,
): Promise<Checked> {
  const { closeChain } = await import('../image/chain.js')
  const { checkVmdk, warningsOf } = await import('../formats/vmdk/check.js')
  const { repairVmdk } = await import('../formats/vmdk/repair.js')
  const { chain, obstacle } = await openVmdk(name, repair, allowPaths)
  try {
    const spec = chain.layers[0].vmdk as VmdkSpec
    // The check says these, too.
    const found = spec.extents.flatMap(({ file, layout }) =>
      warningsOf(layout).map(warning => `${file?.path}: ${warning}`),
    )
    for (const warning of chain.warnings.filter(each => !found.includes(each))) {
      complain(`vimgfs: ${printable(warning)}\n`)
    }
    const extents = await extentsOf(spec, obstacle)
    return repair === undefined
      ? { format: 'vmdk', after: checkVmdk(extents, options) }
      : { format: 'vmdk', ...repairVmdk(extents, repair, options) }
  } finally {
    closeChain(chain)
  }
}

/** Opens the image with its extents alone; for reading, with the reason, where it cannot be written. */
async function openVmdk(
  name: string,
  repair: RepairKind | undefined,
  allowPaths: readonly string[],
): Promise<{ chain: Chain; obstacle?: string }> {
  const { openChain } = await import('../image/chain.js')
  const { WriteProtected } = await import('../io/named-file.js')
  const { whenReleased } = await import('../fs/release.js')
  const open = (access: Access) =>
    openChain(name, {
      format: 'vmdk',
      describe: 'image',
      takesLocks: true,
      // What the disk reads as does not change, so what tracks its changes stays true.
      dropsChangeTracking: true,
      access,
      allowPaths,
    })
  try {
    if (repair === undefined) return { chain: await whenReleased(() => open('read'), say) }
    try {
      return { chain: await whenReleased(() => open('write'), say) }
    } catch (error) {
      if (!(error instanceof WriteProtected)) throw error
      return { chain: open('read'), obstacle: error.message }
    }
  } catch (error) {
    throw onceItHasEnded(error)
  }
}

const say = (line: string) => complain(`vimgfs: ${printable(line)}\n`)

async function extentsOf(
  { extents }: VmdkSpec,
  obstacle: string | undefined,
): Promise<RepairedExtent[]> {
  const { WritableFileStore } = await import('../io/store.js')
  const stores = new Map<number, WritableStore>()
  const storeOf = ({ path, fd, sizeBytes }: FileSpec): WritableStore => {
    const store =
      stores.get(fd) ?? new WritableFileStore(path, fd, BigInt64Array.of(BigInt(sizeBytes)))
    stores.set(fd, store)
    return store
  }
  return extents.map(({ file, layout, sizeBytes, isWritable }) => ({
    sizeBytes,
    layout,
    store: file && storeOf(file),
    obstacle: obstacle ?? (isWritable ? undefined : 'its descriptor says that it is not written'),
    isDevice: file !== undefined && fs.fstatSync(file.fd).isBlockDevice(),
  }))
}

async function lock({ fd, path }: OpenedFile, access: Access): Promise<void> {
  const { lockImage } = await import('../io/locks.js')
  const { whenReleased } = await import('../fs/release.js')
  try {
    const warning = await whenReleased(() => lockImage(fd, path, access), say)
    if (warning !== undefined) say(warning)
  } catch (error) {
    throw onceItHasEnded(error)
  }
}

/** Ways out that who has found an image in use knows of are those of a mount. */
function onceItHasEnded(error: unknown): unknown {
  if (!(error instanceof ImageInUse)) return error
  const context = { ...error.context, hint: 'check it once that has ended' }
  return new ImageInUse(error.message, error.holders, context)
}

async function storeOf({ path, fd, stat }: OpenedFile) {
  const { WritableFileStore } = await import('../io/store.js')
  const { sizeOf } = await import('../io/libc.js')
  const sizeBytes = stat.isBlockDevice() ? BigInt(sizeOf(fd)) : stat.size
  return new WritableFileStore(path, fd, BigInt64Array.of(sizeBytes))
}
