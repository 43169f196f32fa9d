/** Describes a vmdk image for `info`, with the names and the order of qemu-img 7.2. */
import type { DescribeContext, Description, LayerSpec } from '../format.js'
import { beside, type InfoFields } from '../info-fields.js'
import type { ExtentLayout, VmdkSpec } from './open.js'

export const describeVmdk = (
  layer: LayerSpec<VmdkSpec>,
  { filename }: DescribeContext,
): Description => ({
  unitBytes: grainBytes(layer.spec),
  specific: { type: 'vmdk', data: fieldsOf(layer, filename) },
})

function fieldsOf(
  { fd, spec: { descriptor, extents } }: LayerSpec<VmdkSpec>,
  filename: string,
): InfoFields {
  const described = extents.map(({ sizeBytes, file, layout }, index) => {
    const line = descriptor?.extents[index]
    // QEMU shows no type for an extent that contains the descriptor.
    const isOwn = file?.fd === fd
    return {
      compressed: layout.kind === 'sparse' && layout.header.isCompressed ? true : undefined,
      'virtual-size': sizeBytes,
      filename: file && (isOwn ? filename : beside(filename, line?.fileName ?? '')),
      'cluster-size': grainBytesOf(layout),
      format: isOwn ? '' : (line?.type ?? ''),
    }
  })
  return {
    cid: descriptor?.cid,
    'parent-cid': descriptor?.parentCid,
    'create-type': descriptor?.createType,
    extents: described,
  }
}

const grainBytesOf = (layout: ExtentLayout): number | undefined =>
  layout.kind === 'zero' || layout.kind === 'flat' ? undefined : layout.header.grainBytes

/** Returns the grain size if all extents have the same. */
function grainBytes({ extents }: VmdkSpec): number | undefined {
  const sizes = new Set(extents.map(({ layout }) => grainBytesOf(layout)))
  return sizes.size === 1 ? [...sizes][0] : undefined
}
