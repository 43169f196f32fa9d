/** The library: virtual disk images opened, checked and described without FUSE. See docs/library.md. */
import type { CheckOptions, CheckResult, RepairResult } from './formats/check/report.js'
import type { RepairKind } from './formats/check/report.js'
import { type CheckRequest, ImageCheck } from './image/checking/check.js'
import { createChild } from './image/snapshots/child-snapshot.js'
import { describe, type ImageInfo } from './image/info.js'
import { listSnapshots as list, type SnapshotList } from './image/snapshots/snapshot-list.js'
import {
  SnapshotImage,
  type SnapshotName,
  type SnapshotOptions,
} from './image/snapshots/snapshots.js'

export { ImageError, SystemError, UsageError } from './errors.js'
export type { CheckOptions, CheckResult, Finding, RepairResult } from './formats/check/report.js'
export type { RepairKind } from './formats/check/report.js'
export { FORMAT_NAMES } from './formats/registry.js'
export {
  createImage,
  type CreateImageOptions,
  type NewBacking,
} from './image/making/create-image.js'
export type { CreateOption, OptionValues } from './formats/creating.js'
export type { Compared } from './image/comparing/compare.js'
export type { SnapshotChoice } from './image/reading/image-name.js'
export {
  compareImages,
  type CompareImagesOptions,
  convertImage,
  type ConvertImageOptions,
  type ReadImageOptions,
} from './image/whole-images.js'
export type { ImageInfo, SnapshotInfo } from './image/info.js'
export {
  type DiskExtent,
  ImageDisk,
  OpenImage,
  type OpenImageOptions,
  openImage,
  ReadableDisk,
} from './image/open-image.js'
export type { FrozenInfo, LayerInfo, SnapshotList } from './image/snapshots/snapshot-list.js'
export type { SnapshotName, SnapshotOptions } from './image/snapshots/snapshots.js'
export type { ImageStores } from './image/opening/store-chain.js'
export type { Store, WritableStore } from './io/store.js'

export interface CheckImageOptions
  extends CheckOptions,
    Pick<CheckRequest, 'format' | 'allowPaths'> {}

/**
 * Checks whether the tables of the image at `path` are sound. Returns undefined where its format has nothing to
 * check. Changes nothing. Throws ImageError, SystemError.
 */
export async function checkImage(
  path: string,
  options: CheckImageOptions = {},
): Promise<CheckResult | undefined> {
  return (await checked(path, options, undefined))?.after
}

/**
 * Repairs the image at `path`: `leaks` gives back what nothing uses, `all` mends the rest, too. Nobody else may have it
 * open. Returns undefined where its format has nothing to check. Throws ImageError, SystemError.
 */
export async function repairImage(
  path: string,
  what: RepairKind,
  options: CheckImageOptions = {},
): Promise<RepairResult | undefined> {
  return (await checked(path, options, what)) as RepairResult | undefined
}

async function checked(path: string, options: CheckImageOptions, repair: RepairKind | undefined) {
  const image = ImageCheck.open(path, { ...options, repair })
  if (!image) return undefined
  try {
    return await image.run(options)
  } finally {
    image.close()
  }
}

/**
 * Describes the image at `path`, in the words of `qemu-img info --output=json`, and with `isChain` the layers
 * below it, too. Throws ImageError, SystemError.
 */
export function describeImage(
  path: string,
  options: Pick<CheckRequest, 'format' | 'allowPaths'> & {
    readonly isChain?: boolean
    readonly ignoreCid?: boolean
    /** Told what of the image is lost or odd, a line each. */
    readonly warn?: (text: string) => void
  } = {},
): ImageInfo[] {
  const { isChain = false, warn, ...open } = options
  return describe(path, open, isChain, warn)
}

/**
 * Lists the snapshots of the image at `path`, in the words of `vimgfs snapshot list --output=json`. Throws ImageError,
 * SystemError.
 */
export function listSnapshots(
  path: string,
  options: SnapshotOptions & {
    readonly allowPaths?: readonly string[]
    /** Whether to list the layers below, too. */
    readonly withLayers?: boolean
    /** Told what of the image is lost or odd, a line each. */
    readonly warn?: (text: string) => void
  } = {},
): SnapshotList {
  const { withLayers = false, warn = () => {}, ...open } = options
  return list(path, open, withLayers, warn)
}

/**
 * Takes a snapshot of the disk of the image at `path`. Nobody else may write the image meanwhile. After a power cut or an error
 * there is a whole snapshot or none. For a vmdk, it resolves to the path of the child disk that holds what is written from now
 * on; otherwise to undefined. Throws ImageError, SystemError.
 */
export async function createSnapshot(
  path: string,
  tag: string,
  options: SnapshotOptions = {},
): Promise<string | undefined> {
  const child = await createChild(path, tag, options)
  if (child === undefined) await withSnapshots(path, options, image => image.create(tag))
  return child
}

/** Deletes snapshots, all at once. Throws as `createSnapshot` does. */
export async function deleteSnapshots(
  path: string,
  names: readonly SnapshotName[],
  options: SnapshotOptions = {},
): Promise<void> {
  await withSnapshots(path, options, image =>
    image.delete([...new Set(names.map(name => image.indexOf(name)))]),
  )
}

/** Gives a snapshot another tag, which none may have. Throws as `createSnapshot` does. */
export async function renameSnapshot(
  path: string,
  name: SnapshotName,
  tag: string,
  options: SnapshotOptions = {},
): Promise<void> {
  await withSnapshots(path, options, image => image.rename(name, tag))
}

/**
 * Makes the disk what a snapshot is. Takes a snapshot of the present state first and resolves to its tag; to undefined with
 * `discard`, or if a snapshot shows the present state already. Throws as `createSnapshot` does.
 */
export async function revertToSnapshot(
  path: string,
  name: SnapshotName,
  options: SnapshotOptions & {
    /** Whether the present state may be lost. */
    readonly discard?: boolean
    /** Whether to change an image that other images stand on, which breaks them. */
    readonly force?: boolean
  } = {},
): Promise<string | undefined> {
  const { discard = false, ...open } = options
  return withSnapshots(path, { ...open, changesDisk: true }, image =>
    image.revert(image.indexOf(name), discard),
  )
}

async function withSnapshots<T>(
  path: string,
  options: Parameters<typeof SnapshotImage.open>[1],
  act: (image: SnapshotImage) => Promise<T>,
): Promise<T> {
  const image = await SnapshotImage.open(path, options)
  try {
    return await act(image)
  } finally {
    image.close()
  }
}
