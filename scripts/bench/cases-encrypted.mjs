/**
 * The cases of encrypted images: qcow2 with LUKS (aes-256-xts, plain64), as qemu-img makes them. Encryption plays no part
 * in the other cases of qcow2.
 */
import { readCases, writeCases } from './cases.mjs'
import { empty, encrypted, plain } from './images.mjs'

const TITLE = 'qcow2, LUKS'

export const encryptedReadImages = {
  plain: {
    title: `${TITLE}, written in order`,
    make: (place, { size }) => plain(place, size / 2, encrypted(place)),
  },
}

export const encryptedWriteImages = {
  empty: {
    title: `${TITLE}, never written`,
    make: (place, { size }) => empty(place, size / 2, { kind: encrypted(place) }),
  },
  plain: {
    title: `${TITLE}, written in order`,
    make: (place, { size }) => plain(place, size / 2, encrypted(place)),
  },
}

const own = (cases, images, qsd) =>
  cases
    .filter(({ image }) => image in images)
    .map(each => ({ ...each, id: `luks-${each.id}`, targets: { qsd } }))

export const encryptedReadCases = own(readCases, encryptedReadImages, 2)
export const encryptedWriteCases = own(writeCases, encryptedWriteImages, 1.5)
