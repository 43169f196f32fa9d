/** Reads a new image before its files have their names. */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError } from '../../errors.js'
import type { LayerSpec, OpenContext } from '../../formats/format.js'
import { findFormat } from '../../formats/registry.js'
import type { FileSpec } from '../../io/file-spec.js'
import { lockChain, unlockChain } from '../opening/encryption.js'
import { fileSpec, storeOf } from '../layer.js'
import type { NewFile, NewFiles } from '../making/new-files.js'
import { type Source, SourceImage } from '../reading/source.js'

type Layers = [LayerSpec, ...LayerSpec[]]

/**
 * Opens the image in `files`, which is whole but for its names. Throws ImageError, SystemError. The files must stay open until the
 * source is closed.
 * @param base the disk that it stands on
 * @param passphrase of an encrypted image; it stays as it is
 */
export async function openUnnamed(
  files: NewFiles,
  format: string,
  base: Source | undefined,
  passphrase: Buffer | undefined,
): Promise<Source> {
  const top = layerOf(files, format)
  const below = base?.spec.layers ?? []
  const opened = { depth: 1 + below.length, layerSnapshots: [], externalSnapshots: [] }
  const chain = { ...opened, snapshots: [], warnings: [], isWritable: false, recovery: undefined }
  const ask = async () => (passphrase ? [Buffer.from(passphrase)] : [])
  const alone = await unlockChain({ ...chain, layers: [top] }, ask)
  const [unlocked] = alone.layers
  const shifted = below.map(layer =>
    layer.below === undefined ? layer : { ...layer, below: layer.below + 1 },
  )
  const layers: Layers = base ? [{ ...unlocked, below: 1 }, ...shifted] : [unlocked]
  const image = SourceImage.of({ ...chain, layers })
  return image.disk(undefined, () => lockChain(alone))
}

function layerOf(files: NewFiles, format: string): LayerSpec {
  const driver = findFormat(format)
  if (!driver) throw new TypeError(`no format ${format}`)
  const specs = files.all.map(specOf)
  const named = (name: string): FileSpec => {
    const full = path.resolve(path.dirname(files.main.path), name)
    const found = specs.find(spec => spec.path === full)
    if (found) return found
    const what = `the new image names a file "${name}" that was not made`
    throw new ImageError('MISSING', what, { path: files.main.path, hint: 'do not use it' })
  }
  const context: OpenContext = {
    access: 'read',
    isDescribed: false,
    isDevice: false,
    dropsChangeTracking: false,
    known: undefined,
    warn: () => {},
    storeOf,
    openDataFile: named,
    openExtent: named,
  }
  const file = named(files.main.path)
  const { needsRecovery: _, ...opened } = driver.open(file, context)
  return { ...file, format, isProbed: false, ...opened }
}

const specOf = ({ path: file, fd }: NewFile): FileSpec =>
  fileSpec({ path: file, fd, stat: fs.fstatSync(fd, { bigint: true }) })
