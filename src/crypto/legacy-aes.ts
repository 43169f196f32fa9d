import type { CipherSpec } from './spec.js'

const KEY_BYTES = 16

/**
 * Returns the cipher of qcow and qcow2 images with encryption method 1: AES-128-CBC, whose initialization vectors are
 * the 64-bit numbers of the guest's sectors. The key is the passphrase itself, cut off after 16 bytes or filled up with
 * zeros. Nothing in the image tells whether it is right. (Source: QEMU, crypto/block-qcow.c. The qcow2 specification,
 * "AES encryption", says otherwise.)
 */
export function legacyAesSpec(passphrase: Uint8Array): CipherSpec {
  const key = new SharedArrayBuffer(KEY_BYTES)
  new Uint8Array(key).set(passphrase.subarray(0, KEY_BYTES))
  return { mode: 'cbc', ivGenerator: 'plain64', ivHash: undefined, key }
}
