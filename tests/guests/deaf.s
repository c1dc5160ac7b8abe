# A boot sector that says "up" and then does nothing, whatever is pressed.
.code16
start:
    xorw    %ax, %ax
    movw    %ax, %ds
    movw    $(0x7c00 + text), %si
    movw    $0x3f8, %dx
1:  lodsb
    outb    %al, %dx
    cmpb    $10, %al
    jne     1b
    cli
2:  hlt
    jmp     2b
text:
    .ascii  "up\n"
    .org    510
    .word   0xaa55
