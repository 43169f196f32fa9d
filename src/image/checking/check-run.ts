/** Has an image that is open checked, or repaired, by its format. */
import fs from 'node:fs'
import type { CheckOptions, RepairKind, RepairResult } from '../../formats/check/report.js'
import type { CheckedImage, FormatChecking, LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { WritableStore } from '../../io/store.js'
import { OPENED_FILES } from '../opening/store-source.js'

/** The result of a check, or of a repair with the check after it. */
export type Found = Pick<RepairResult, 'after'> & Partial<RepairResult>

/** The image and the work on it, as plain data. */
export interface CheckSetup {
  /** Its files are open. */
  readonly layer: LayerSpec
  /** The kind of repair; undefined for a check. */
  readonly repair: RepairKind | undefined
  /** Why the image may not be written. */
  readonly obstacle: string | undefined
}

/** Checks or repairs the image in this thread. Throws ImageError, SystemError. */
export async function runCheck(setup: CheckSetup, options: CheckOptions): Promise<Found> {
  const { layer, repair } = setup
  const checking = formatOf(layer).checking as FormatChecking
  const checker = await checking.load()
  const image = checkedImage(setup, checking)
  return repair === undefined
    ? { after: checker.check(image, options) }
    : checker.repair(image, repair, options)
}

function checkedImage({ layer, obstacle }: CheckSetup, checking: FormatChecking): CheckedImage {
  const stores = new Map<number, WritableStore>()
  // Extents in one file share a store.
  const storeOf = (file: FileSpec): WritableStore => {
    const size = BigInt64Array.of(BigInt(file.sizeBytes))
    const store = stores.get(file.fd) ?? OPENED_FILES.writable(file, size)
    stores.set(file.fd, store)
    return store
  }
  const isDeviceFile = ({ fd }: FileSpec) => fs.fstatSync(fd).isBlockDevice()
  return {
    store: storeOf(layer),
    layer: checking.needsLayer ? layer : undefined,
    storeOf,
    isDevice: isDeviceFile(layer),
    isDeviceFile,
    obstacle,
  }
}
