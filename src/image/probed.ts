/**
 * Whether the format that an image's first bytes say is to be believed. The guest of a raw image writes
 * these bytes, and a header of another format makes vimgfs open the files that it names.
 */
import { printable } from '../errors.js'
import { backingNameOf, type LayerSpec } from './layer.js'
import { parentLink } from '../formats/vmdk/parent.js'

/** Suffixes of raw images. */
const RAW_NAME = /(?:\.(?:raw|img|dd|bin|image|hdd|disk)|-flat\.vmdk)$/i

/** A warning where an image's name says raw, and its bytes a format that makes it name other files. */
export function probedWarning(layer: LayerSpec): string | undefined {
  if (!layer.isProbed || layer.format === 'raw' || !RAW_NAME.test(layer.path)) return undefined
  const named = namedFile(layer)
  if (named === undefined) return undefined
  return `${layer.path}: its name says raw, but its first bytes say ${layer.format} with ${printable(named)}; if its guest has written them, use --format raw`
}

/** A file that the layer names, for messages. */
function namedFile(layer: LayerSpec): string | undefined {
  const { qcow2, vmdk, fd } = layer
  const backing = backingNameOf(layer)
  if (backing !== undefined) return `the backing file "${backing}"`
  if (qcow2?.dataFileName !== undefined) return `the data file "${qcow2.dataFileName}"`
  const parent = vmdk && parentLink(vmdk, layer.path)
  if (parent) return `the parent "${parent.hint}"`
  const extent = vmdk?.extents.find(({ file }) => file && file.fd !== fd)
  return extent?.file && `the extent "${extent.file.path}"`
}
