/** A raw file that is a LUKS container: its bytes are shown encrypted, as they are. */
import type { Store } from '../../io/store.js'
import type { Description } from '../format.js'

const MAGIC = Buffer.from('LUKS\xba\xbe', 'latin1')

/** Returns what `info` says of it (LUKS1 and LUKS2 On-Disk Format, header); undefined if it is none. */
export function luksContainer(store: Store): Description['specific'] {
  const head = Buffer.alloc(MAGIC.length + 2)
  if (store.read(head, 0, head.length, 0) < head.length) return undefined
  if (!head.subarray(0, MAGIC.length).equals(MAGIC)) return undefined
  const version = head.readUInt16BE(MAGIC.length)
  return { type: 'raw', data: { content: 'LUKS container', 'luks-version': version } }
}
