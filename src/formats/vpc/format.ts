/** VHD images of Virtual PC, Hyper-V and Azure, fixed and dynamic; see header.ts. They are read only. */
import { WriteProtected } from '../../io/named-file.js'
import type { Format } from '../format.js'
import { mappingWithHoles } from '../mapping.js'
import { DynamicVpcDriver, FixedVpcDriver } from './driver.js'
import { hasVpcFooter, isVpcHead, readVpcHeader, type VpcHeader } from './header.js'

export const vpcFormat: Format<VpcHeader> = {
  name: 'vpc',
  suffixes: ['.vhd', '.vpc'],
  unit: 'cluster',
  matches: isVpcHead,
  matchesStore: hasVpcFooter,
  requireWritableKind: ({ path }) => {
    const hint = 'mount it with -o ro, or convert it with qemu-img convert'
    throw new WriteProtected(path, 'vpc (VHD) images are read only', hint)
  },
  open: (file, { storeOf, warn }) => {
    const spec = readVpcHeader(storeOf(file))
    for (const warning of spec.warnings) warn(`${file.path}: ${warning}`)
    return { spec }
  },
  sizeBytes: ({ spec }) => spec.sizeBytes,
  driver: ({ layer, store, storeId, metadata }) => {
    const { spec: header } = layer
    if (!header.blocks) return new FixedVpcDriver(header, store)
    return new DynamicVpcDriver({ header, store, storeId, metadata }, header.blocks)
  },
  mapping: ({ spec }) => mappingWithHoles(() => (spec.blocks ? undefined : 'both')),
  describe: ({ spec }) => ({ unitBytes: spec.blocks?.blockBytes }),
  attributes: ({ spec }) => ({
    'disk-type': spec.blocks ? 'dynamic' : 'fixed',
    ...(spec.blocks && { 'block-size': String(spec.blocks.blockBytes) }),
  }),
  tableBytes: ({ spec: { blocks } }) =>
    blocks ? blocks.tableEntries * (4 + blocks.bitmapBytes) : 0,
  unitBytes: () => 1,
}
