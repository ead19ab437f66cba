// Model of the iCE40 UltraPlus LED driver: a pin is 0 (LED lit) where the driver has current and
// is enabled and its input is high, else 1 (open drain, pulled up by the LED). Currents are not
// modelled. Source of the behaviour: Lattice FPGA-TN-1288, iCE40 LED driver usage guide.

module SB_RGBA_DRV (
    input  CURREN,
    input  RGBLEDEN,
    input  RGB0PWM,
    input  RGB1PWM,
    input  RGB2PWM,
    output RGB0,
    output RGB1,
    output RGB2
);
    parameter CURRENT_MODE = "0b0";
    parameter RGB0_CURRENT = "0b000000";
    parameter RGB1_CURRENT = "0b000000";
    parameter RGB2_CURRENT = "0b000000";

    wire lit = CURREN & RGBLEDEN;
    assign RGB0 = ~(lit & RGB0PWM);
    assign RGB1 = ~(lit & RGB1PWM);
    assign RGB2 = ~(lit & RGB2PWM);
endmodule
