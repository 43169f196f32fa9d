/** Describes a qcow2 image for `info`, with the names and the order of qemu-img 7.2. */
import { ImageError } from '../../errors.js'
import type { DescribeContext, Description, LayerSpec } from '../format.js'
import { cText, type InfoFields } from '../info-fields.js'
import { type Qcow2Bitmap, readBitmaps } from './bitmaps.js'
import {
  AUTOCLEAR,
  COMPATIBLE,
  clusterBytes,
  INCOMPATIBLE,
  isExtendedL2,
  type Qcow2Header,
} from './header.js'
import { warningsOf } from './losses.js'
import { readLuks } from './luks.js'

export function describeQcow2(
  { path, spec }: LayerSpec<Qcow2Header>,
  context: DescribeContext,
): Description {
  for (const loss of warningsOf(context.store, spec)) context.warn(`${path}: ${loss}`)
  return {
    unitBytes: clusterBytes(spec),
    specific: { type: 'qcow2', data: fieldsOf(spec, context) },
    isDirty: (spec.incompatible & INCOMPATIBLE.dirty) !== 0n,
  }
}

function fieldsOf(header: Qcow2Header, context: DescribeContext): InfoFields {
  const always = {
    compat: header.version === 2 ? '0.10' : '1.1',
    'compression-type': header.compression,
  }
  const refcounts = { 'refcount-bits': 2 ** header.refcountOrder }
  const encryption = { encrypt: describeEncryption(header, context) }
  if (header.version === 2) return { ...always, ...refcounts, ...encryption }
  const isExternal = (header.incompatible & INCOMPATIBLE.externalData) !== 0n
  const isRaw = (header.autoclear & AUTOCLEAR.rawExternalData) !== 0n
  return {
    ...always,
    'lazy-refcounts': (header.compatible & COMPATIBLE.lazyRefcounts) !== 0n,
    bitmaps: describeBitmaps(header, context),
    ...refcounts,
    'data-file': header.dataFileName,
    ...encryption,
    'data-file-raw': isExternal ? isRaw : undefined,
    corrupt: (header.incompatible & INCOMPATIBLE.corrupt) !== 0n,
    'extended-l2': isExtendedL2(header),
  }
}

function describeBitmaps(
  header: Qcow2Header,
  { store, warn }: DescribeContext,
): InfoFields[] | undefined {
  let found: readonly Qcow2Bitmap[] = []
  try {
    found = readBitmaps(store, header)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    warn(`${store.path}: its bitmaps are not listed: ${error.message}`)
  }
  const bitmaps = found.map(bitmap => ({
    flags: [...(bitmap.isInUse ? ['in-use'] : []), ...(bitmap.isAuto ? ['auto'] : [])],
    name: cText(bitmap.name, bitmap.name.length),
    granularity: bitmap.granularityBytes,
  }))
  return bitmaps.length > 0 ? bitmaps : undefined
}

const CRYPT_LUKS = 2

function describeEncryption(
  header: Qcow2Header,
  { store }: DescribeContext,
): InfoFields | undefined {
  if (header.cryptMethod === 0) return undefined
  if (header.cryptMethod !== CRYPT_LUKS) return { format: 'aes' }
  const luks = readLuks(store, header)
  return {
    'ivgen-alg': luks.ivGenerator,
    'hash-alg': luks.hash,
    'cipher-alg': luks.cipher,
    uuid: luks.uuid,
    'ivgen-hash-alg': luks.ivHash,
    format: 'luks',
    'cipher-mode': luks.mode,
    slots: luks.slots.map(slot => ({
      active: slot.isActive,
      iters: slot.isActive ? slot.iterations : undefined,
      'key-offset': slot.keyOffset,
      stripes: slot.isActive ? slot.stripes : undefined,
    })),
    'payload-offset': luks.payloadOffset,
    'master-key-iters': luks.masterKeyIterations,
  }
}
